"""Train a small GPT on the characters of a text, data-parallel, and let it write.

python examples/gpt.py                            # Shakespeare's sonnets, one process
dprun -n 2 examples/gpt.py --text FILE            # any text, two ranks
dprun -n 2 examples/gpt.py --text FILE --resume   # after an interruption: the same bits as without
"""

import argparse
from pathlib import Path

from tqdm import tqdm

import dptrain
import dptrain.distributed as dist
import dptrain.nn.functional as F
from dptrain import metrics, nn, optim
from dptrain.checkpoint import load_checkpoint, save_checkpoint
from dptrain.data import DataLoader, DistributedSampler, TensorDataset
from dptrain.nn.parallel import DistributedDataParallel

# Public domain: W. Shakespeare, "The Sonnets", 1609.
SONNETS = Path(__file__).parent / "sonnets.txt"


class Block(nn.Module):
    """Attention to what came before, then a layer for each place; normalised before, added after."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(n, length, width)))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Symbols (N, length) -> scores of the next symbol at each place (N, length, symbols)."""

    def __init__(self, symbols, context, width, heads, layers, dropout):
        super().__init__()
        self.context = context
        self.symbol, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols, bias=False)
        self.head.weight = self.symbol.weight  # one table for both directions
        self.drop = nn.Dropout(dropout)
        self.apply(self._init)

    @staticmethod
    def _init(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, symbols):
        places = dptrain.arange(symbols.shape[1], device=symbols.device)
        x = self.drop(self.symbol(symbols) + self.place(places))
        return self.head(self.norm(self.blocks(x)))

    @dptrain.no_grad()
    def write(self, symbols, count, temperature=0.8):
        """Go on with `count` symbols drawn one after another: (1, length) -> (1, length + count)."""
        self.eval()
        for _ in range(count):
            scores = self(symbols[:, -self.context :])[:, -1] / temperature
            symbols = dptrain.cat([symbols, dptrain.multinomial(scores.softmax(-1), 1)], dim=1)
        return symbols


def windows(symbols, context, stride):
    """Each window of `context` symbols, with what follows each of them."""
    cut = symbols.unfold(0, context + 1, stride)
    return TensorDataset(cut[:, :-1], cut[:, 1:])


@dptrain.no_grad()
def evaluate(model, batches):
    """Mean loss per symbol over the batches of all ranks."""
    model.eval()
    mean_loss = metrics.Mean()
    for inputs, targets in batches:
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        mean_loss.update(loss, targets.numel())
    return mean_loss.compute().item()


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=SONNETS, help="a text file in UTF-8")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16, help="of all ranks together")
    parser.add_argument(
        "--context", type=int, default=128, help="characters the model sees at once"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/gpt"))
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--write", type=int, default=300, help="characters to write at the end")
    args = parser.parse_args()
    if args.width % args.heads:
        parser.error(f"--width {args.width} is no multiple of --heads {args.heads}")
    if not args.text.is_file():
        parser.error(f"--text: there is no file {args.text}")
    return args


def main():
    args = parse_arguments()
    dist.init_process_group()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    dptrain.manual_seed(0)

    text = args.text.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    symbols = dptrain.tensor([number[character] for character in text])
    part = len(symbols) * 9 // 10
    if len(symbols) - part <= args.context:
        raise SystemExit(
            f"{args.text}: {len(symbols)} characters are too few for --context {args.context}"
        )
    train = windows(symbols[:part], args.context, stride=args.context // 8)
    test = windows(symbols[part:], args.context, stride=args.context)
    loader = DataLoader(
        train,
        args.batch_size // world_size,
        sampler=DistributedSampler(train),
        drop_last=True,
    )
    test_loader = DataLoader(test, 16, sampler=DistributedSampler(test, shuffle=False, pad=False))

    gpt = GPT(len(alphabet), args.context, args.width, args.heads, args.layers, args.dropout)
    model = DistributedDataParallel(gpt)
    # Only matrices decay; what shifts and scales does not.
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95),
    )  # fmt: skip
    warm_up = max(1, args.steps // 10)
    scheduler = optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up),
            optim.lr_scheduler.CosineAnnealingLR(
                optimizer, args.steps - warm_up, eta_min=args.lr / 10
            ),
        ],
        milestones=[warm_up],
    )
    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    step = 0
    if args.resume:
        saved = load_checkpoint(args.checkpoints, into=run)
        if saved["steps"] != args.steps:
            raise SystemExit(f"--resume: this run's schedule is made for --steps {saved['steps']}")
        dptrain.set_rng_state(saved["random"])
        step = saved["step"]

    bar = tqdm(total=args.steps, initial=step, disable=rank != 0, leave=False)
    while step < args.steps:
        for inputs, targets in loader:
            model.train()
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            bar.update()
            if step % args.every == 0 or step == args.steps:
                test_loss = evaluate(model, test_loader)
                if rank == 0:
                    figures = f"train loss {loss.item():.4f}  test loss {test_loss:.4f}"
                    tqdm.write(f"step {step:5}  {figures}")
                # Last: a pass over a loader draws random numbers too, that of the test text as well.
                random = dptrain.get_rng_state()
                state = {**run, "random": random, "step": step, "steps": args.steps}
                save_checkpoint(args.checkpoints, state, step)
            if step == args.steps:
                break
    bar.close()

    if rank == 0 and args.write:
        written = gpt.write(symbols[None, : args.context // 2], args.write)
        print("".join(alphabet[i] for i in written[0].tolist()))


if __name__ == "__main__":
    main()
