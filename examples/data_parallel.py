"""DataParallel: one process, several devices, each with its share of the batch.

DPTRAIN_HOST_DEVICES=4 python examples/data_parallel.py     # four virtual devices on any machine
python examples/data_parallel.py                            # whatever devices this machine has
"""

import argparse

import dptrain
import dptrain.nn.functional as F
from dptrain import nn, optim
from dptrain.data import DataLoader, TensorDataset


class Model(nn.Module):
    """A linear layer that tells which share of the batch it sees, and where."""

    def __init__(self, input_size, output_size):
        super().__init__()
        self.fc = nn.Linear(input_size, output_size)

    def forward(self, x):
        out = self.fc(x)
        # One write, newline included: replicas run in threads and would mix their words.
        print(
            f"  in model on {x.device}: input {tuple(x.shape)}, output {tuple(out.shape)}\n", end=""
        )
        return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=30)
    parser.add_argument("--samples", type=int, default=100)
    args = parser.parse_args()
    dptrain.manual_seed(0)

    data = TensorDataset(dptrain.randn(args.samples, 5), dptrain.randn(args.samples, 2))
    model = nn.DataParallel(Model(5, 2))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    print(f"devices: {', '.join(map(str, model.device_ids))}")

    for inputs, targets in DataLoader(data, args.batch_size, shuffle=True):
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = F.mse_loss(outputs, targets)
        loss.backward()
        optimizer.step()
        print(
            f"outside: input {tuple(inputs.shape)}, output {tuple(outputs.shape)}, loss {loss.item():.4f}"
        )


if __name__ == "__main__":
    main()
