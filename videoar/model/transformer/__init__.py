"""The autoregressive transformer: network, schemes, masks, corruption and sampling."""
