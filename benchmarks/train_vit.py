"""Trains the small vision transformer of `cleanai.models` on CIFAR-10, for `benchmarks.accuracy`.

    CLEANAI_DATA=/path/to/data python -m benchmarks.train_vit --epochs 14

After every epoch all that a later call needs to go on lies in a checkpoint beside the weights: calling it again after
an interruption continues with the next epoch. Nothing is chosen by the test images: they are used once, at the end.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cleanai.data import augment_cifar10, cache_root, load_cifar10, make_loader
from cleanai.errors import InputError
from cleanai.evaluate import count_parameters, evaluate_model
from cleanai.models import cifar_vit, load_weights

BATCH_SIZE = 128
WARM_UP = 0.05  # the share of the steps in which the learning rate rises
BETAS = (0.9, 0.99)
OPTIMIZER_TENSORS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each parameter


def default_weights_path() -> Path:
    """Where the trained weights lie unless another file is named: in the cache, outside of the repository."""
    return cache_root() / "cifar_vit.safetensors"


def train_vit(
    model: nn.Module,
    data: TensorDataset,
    *,
    epochs: int,
    checkpoint: Path,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    seed: int = 0,
) -> Iterator[tuple[int, float, float]]:
    """Trains in place; yields (epoch, mean loss, accuracy in percent) of the training images, once it is saved.

    AdamW in bfloat16 autocast, images shifted and mirrored, the learning rate after a linear rise along half a cosine.
    An epoch depends on the checkpoint before it and on the seed alone, so an interrupted training ends as any other.

    Raises:
        InputError: if the checkpoint is of another model or of a training with other settings.
    """
    settings = f"epochs={epochs} lr={lr} weight_decay={weight_decay} label_smoothing={label_smoothing} seed={seed}"
    optimizer = make_optimizer(model, lr, weight_decay)
    done = load_checkpoint(checkpoint, model, optimizer, settings) if checkpoint.is_file() else 0
    steps = math.ceil(len(data) / BATCH_SIZE)
    model.train()
    for epoch in range(done + 1, epochs + 1):
        loader = make_loader(data, batch_size=BATCH_SIZE, shuffle_seed=1000 * seed + epoch, augment=augment_cifar10)
        loss_sum, correct = 0.0, 0
        for step, (images, labels) in enumerate(loader):
            rate = lr * learning_rate_share(((epoch - 1) * steps + step) / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += int((logits.argmax(dim=1) == labels).sum())
        save_checkpoint(checkpoint, model, optimizer, settings, epoch)
        yield epoch, loss_sum / len(data), 100.0 * correct / len(data)


def learning_rate_share(progress: float) -> float:
    """The share of the highest learning rate when this share of the steps is done.

    Example:
        >>> [round(learning_rate_share(progress), 3) for progress in (0, 0.025, 0.05, 0.525, 1)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and filters, not biases, normalisation layers and positions."""
    decayed = [weight for name, weight in model.named_parameters() if weight.ndim > 1 and name != "position"]
    kept = {id(weight) for weight in decayed}
    rest = [weight for weight in model.parameters() if id(weight) not in kept]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: str, epoch: int) -> None:
    """Weights and optimizer in one safetensors file, renamed once it is whole."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for kind in OPTIMIZER_TENSORS:
            tensors[f"{kind}.{name}"] = optimizer.state[parameter][kind].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    save_file(tensors, scratch, {"settings": settings, "epoch": str(epoch)})
    scratch.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> int:
    """Puts a checkpoint back into model and optimizer; gives the number of epochs behind it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata["settings"] != settings:
        raise InputError(
            f"{path} comes from a training with {metadata['settings']}, this one has {settings}; give the same "
            "settings to go on with it, or remove the file to begin anew."
        )
    model.load_state_dict(_without_prefix(tensors, "model."))
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {kind: tensors[f"{kind}.{name}"] for kind in OPTIMIZER_TENSORS}
    return int(metadata["epoch"])


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or goes on training, and says how well the network does on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, help="only so many of the 50,000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=default_weights_path(), help="where the weights go")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = cifar_vit()
    print(f"{count_parameters(model):,} parameters", flush=True)
    data = load_cifar10("train", limit=args.train_images, seed=args.seed)
    checkpoint = args.weights.with_suffix(".checkpoint")
    start = time.perf_counter()
    records = train_vit(model, data, epochs=args.epochs, lr=args.lr, seed=args.seed, checkpoint=checkpoint)
    for epoch, loss, accuracy in records:
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {loss:.3f}, training accuracy {accuracy:.1f} %, {seconds:.0f} s", flush=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, args.weights)
    test = make_loader(load_cifar10("test"), batch_size=500)
    accuracy = evaluate_model(load_weights(cifar_vit(), args.weights), test).accuracy
    print(f"test accuracy {accuracy:.2f} %, weights in {args.weights}")


if __name__ == "__main__":
    main()
