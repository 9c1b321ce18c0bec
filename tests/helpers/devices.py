"""Stand-ins for devices that are not here."""

import torch


class OnGpu(torch.Tensor):
    """A tensor that must be brought to the CPU before numpy gets it, as on a GPU; what follows from it is one, too."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("it is on a GPU")
