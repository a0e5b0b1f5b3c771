"""`torch.utils.model_zoo`'s name for weights from the network; it lives in `dptrain.hub`."""

from dptrain.hub import load_state_dict_from_url as load_url

__all__ = ["load_url"]
