"""Bytes of tensors that are alive at once, seen at every operation of torch."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """``most`` is the most that tensors made while it lasts take at once."""

    def __init__(self):
        super().__init__()
        self.most, self._made = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self._made += [weakref.ref(t) for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        alive = [(ref, tensor) for ref in self._made if (tensor := ref()) is not None]
        self._made = [ref for ref, _ in alive]
        storages = {tensor.untyped_storage().data_ptr(): tensor for _, tensor in alive}
        total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
        self.most = max(self.most, total)
        return found
