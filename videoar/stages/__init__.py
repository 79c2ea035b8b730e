"""The stages of the platform: config class and stage class each, no maths, no engine."""
