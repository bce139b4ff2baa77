"""lspt train: images to a bundle."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lspt_serve.baseline import BaselineRecord
from lspt_serve.bundle import BASELINE, MANIFEST
from lspt_serve.cli.console import (
    ImgSize,
    Json,
    NormaliseBy,
    Overwrite,
    explain_rounding,
    parse_options,
    print_json,
    stoppable,
)
from lspt_serve.errors import OptionError, OutputError
from lspt_serve.manifest import MAX_VERSION, Manifest, check_task_name

__all__ = ["train"]


def train(
    backbone: Annotated[
        str, typer.Option(help="A .safetensors or .pth file, a timm model name or an embedded one.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Class folders (train, val, test, or LABEL/* split by --seed), a .csv, a .tar, or "
            "a folder of VTAB-1K, FGVC or Hugging Face datasets."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write: a folder named like the task.")],
    method: Annotated[
        str,
        typer.Option(
            help="linear, vpt-shallow, vpt-deep, vfpt, v2apt, gated or lspt; full trains the "
            "backbone too: a baseline, not a bundle."
        ),
    ] = "lspt",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of the method, e.g. num_prompts=16.", metavar="KEY=VALUE"),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="cls, patch_mean, prompt_mean or two of them joined by +, in this order."
        ),
    ] = None,
    img_size: ImgSize = None,
    normalisation: NormaliseBy = None,
    init: Annotated[
        Literal["auto", "uniform", "tokens", "kmeans"],
        typer.Option(
            help="Prompts start as noise, patch tokens of train or centres of them; auto: as does "
            "best for the method."
        ),
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="Passes over train.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 64,
    lr: Annotated[
        float, typer.Option(help="Peak learning rate of AdamW; full wants 1e-5 to 1e-4.")
    ] = 3e-3,
    prompt_lr_scale: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the prompts, in multiples of --lr; 10 for tokens and centres, 1 "
            "for noise unless given."
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    warmup_epochs: Annotated[float, typer.Option(help="Epochs before the cosine.")] = 3.0,
    augment: Annotated[
        Literal["none", "flip", "crop", "crop+flip"],
        typer.Option(help="Random changes of train's images."),
    ] = "none",
    mixup: Annotated[
        float, typer.Option(help="Mix pairs of images by Beta(MIXUP, MIXUP); 0: do not.")
    ] = 0.0,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of a target that goes to all labels alike.")
    ] = 0.0,
    sampling: Annotated[
        Literal["all", "balanced"],
        typer.Option(help="An epoch: every image once, or draws with every label equally likely."),
    ] = "all",
    accumulate: Annotated[
        int, typer.Option(help="Cut a step into so many micro-batches, to save memory.")
    ] = 1,
    crop_pct: Annotated[
        float,
        typer.Option(
            help="Below 1: resize to img_size / crop_pct keeping aspect, crop the middle."
        ),
    ] = 1.0,
    keep: Annotated[
        Literal["best", "last"], typer.Option(help="The epoch to keep: best on val, or last.")
    ] = "best",
    early_stop: Annotated[
        int | None, typer.Option(help="End after so many epochs without a better one on val.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of initialisation, order, augmentation and split.")
    ] = 0,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto: bf16 where it is faster."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the model through torch.compile.")
    ] = False,
    on_bad_image: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do when an image cannot be read.")
    ] = "refuse",
    cache: Annotated[
        Path | None, typer.Option(help="Keep decoded images in this folder for the next run.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of state and logs (TensorBoard's too); OUT.run unless given. The same "
            "command again goes on where it was stopped."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where a run was stopped.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Of the bundle's tensors: float16 is half the bytes."),
    ] = "float32",
    version: Annotated[
        int, typer.Option(help="Version of the bundle, from 1.", min=1, max=MAX_VERSION)
    ] = 1,
    license: Annotated[str | None, typer.Option(help="Licence of the bundle.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Tune a task on a frozen backbone and write its bundle.

    The epoch to keep is chosen on val; test is looked at once, at the end.

    Example:  lspt train --backbone vit_base_patch16_224 --data photos --out bundles/flowers

    Example:  lspt train --backbone vit.pth --data photos --out bundles/flowers
    --method lspt --option num_prompts=16 --option coder=gru --epochs 60

    Example:  lspt train --backbone mae_pretrain_vit_base.pth --img-size 112 --data photos
    --out bundles/flowers

    Example:  lspt train --backbone vit.pth --data cub --out bundles/birds --crop-pct 0.875
    --augment crop+flip --cache build/cache

    Example:  lspt train --backbone vit.pth --data photos --out baselines/flowers
    --method full --lr 3e-5

    Example:  torchrun --nproc-per-node 4 -m lspt_serve train --backbone vit.pth --data cub
    --out bundles/birds --cache build/cache
    """
    full = method == "full"
    if full and (dtype, version, license) != ("float32", 1, None):
        raise OptionError(
            "--dtype, --version and --license are those of a bundle; leave them out with full"
        )
    check_task_name(out.name)
    marker = BASELINE if full else MANIFEST
    run = run or out.with_name(f"{out.name}.run")
    _check_apart(run, out)
    options = parse_options(option)
    with stoppable():
        from lspt_serve.cli import training  # torch: takes seconds

        settings = training.TrainSettings(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            prompt_lr_scale=prompt_lr_scale,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            augment=augment,
            mixup=mixup,
            label_smoothing=label_smoothing,
            sampling=sampling,
            accumulate=accumulate,
            keep=keep,
            early_stop=early_stop,
            seed=seed,
            precision=precision,
            device=device,
            compile=compile,
        )
        training.join_processes(training.pick_device(device))
        with training.hold(out, run, marker=marker, overwrite=overwrite, restart=restart):
            vit = training.open_backbone(backbone, img_size=img_size, normalisation=normalisation)
            # say what is wrong with the method before minutes of decoding
            training.check_method(vit, method, pool=pool, init=init, options=options)
            dataset = training.decode(
                data,
                vit.preprocess.img_size,
                crop_pct=crop_pct,
                seed=seed,
                cache=cache,
                on_bad_image=on_bad_image,
            )
            record = training.tune_and_save(
                vit,
                dataset,
                out,
                run,
                restart=restart,
                of_bundle=None
                if full
                else {"method": method, "dtype": dtype, "version": version, "license": license},
                options=options,
                pool=pool,
                init=init,
                settings=settings,
            )
    if record is None:  # torchrun's other processes
        return
    if as_json:
        print_json({"baseline" if full else "bundle": str(out), **record.model_dump(mode="json")})
    else:
        _print(out, run, record)


def _check_apart(run: Path, out: Path) -> None:
    if out.resolve() in (run.resolve(), *run.resolve().parents):
        raise OutputError(f"{run} lies in {out}, which is replaced as a whole; give another --run")
    report = run.resolve() / "report"
    if report in (out.resolve(), *out.resolve().parents):
        raise OutputError(
            f"{out} lies where the run writes its report; give another --out or --run"
        )


def _print(out: Path, run: Path, record: Manifest | BaselineRecord) -> None:
    metrics = record.metrics
    assert metrics is not None
    method = record.method if (origin := getattr(record, "trained_as", None)) is None else origin
    print(
        f"{out}: {method.name}, {len(record.labels)} labels, val accuracy "
        f"{metrics.val_accuracy:.1%} (epoch {metrics.best_epoch}), test accuracy "
        f"{metrics.test_accuracy:.1%}, {metrics.train_s:.0f} s"
    )
    if isinstance(record, BaselineRecord):
        print(f"ECE {metrics.test_ece:.3f} on test, {record.num_bytes:,} bytes of weights")
    if rounding := explain_rounding(metrics):
        print(rounding)
    if (page := run / "report" / "index.html").is_file():
        print(f"report: {page}")
