"""`torch.utils.data._utils`: no public name, but much imported for `collate`."""

from dptrain.utils.data._utils import collate as collate
