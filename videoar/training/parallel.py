"""Weights, gradients and optimizer state divided over the ranks of a training (FSDP2).

One idea: every tensor of the training is a `DTensor` of which a rank holds some rows. A unit is
gathered just before it computes and divided again after it, so a rank needs the memory of one unit
beside its own share.

    unit          weights and gradients are exchanged in
    each layer    the precision of the training
    norm, head    fp32
    the rest      fp32: text, embeddings; gathered for `encode_text`, too

Gradients of ranks are summed, not averaged: losses are scaled by the rank's share of the batch.
All ranks must run the same passes, as each exchanges weights: see `Rows.parts`.

Source: torch.distributed.fsdp.fully_shard; the units are those of torchtitan.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from videoar.model.transformer.network import VideoAR


def shard(model: VideoAR, dtype: torch.dtype | None) -> None:
    """Divide the weights of a model over all ranks, in place; names of weights stay.

    Args:
        model: equal on all ranks.
        dtype: in which weights and gradients of layers are exchanged; None is that of the weights.
    """
    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    # Autocast chooses the dtype of inputs; the residual stream stays fp32.
    policy = MixedPrecisionPolicy(dtype, dtype, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard([model.norm, model.head], mesh=mesh)
    # Divided again after every pass: weights that stay gathered would miss an exchange with the
    # moving average.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "encode_text")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale
    # No result of a unit is changed in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights are divided over ranks."""
    return isinstance(model, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that this rank holds, sharing memory; all if it is no DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the rows of all ranks; all ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(weights: Mapping[str, Tensor], *, is_kept: bool) -> dict[str, Tensor]:
    """Return whole weights on the CPU where `is_kept`, else nothing; all ranks take part.

    One weight at a time: all of them may not fit on a device.
    """
    result = {}
    for name, weight in weights.items():
        gathered_weight = whole(weight)
        if is_kept:
            result[name] = gathered_weight.cpu()
    return result
