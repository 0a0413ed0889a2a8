"""Help screens of the commands before, during and after a training."""

from __future__ import annotations

from memtrain.cli.help.screen import SCREEN, TRUST, Group, Screen

RUN = Group(
    "Run",
    {
        "--config NAME": "tiny, tiny_lora, sd15_lora, sdxl_lora, few, ..., an overlay such as "
        "callbacks/loss_skipping, or a YAML file; repeat it to combine them",
        "--trainer.default_root_dir FOLDER": "the folder of the run",
        "--ckpt_path last": "go on with the run in that folder",
        "--seed_everything N": "the seed of the run",
    },
    more=TRUST.replace(" --config", ""),
)
DATA = Group(
    "Data",
    {
        "--data.init_args.path PATH": "images with captions, or shards",
        "--data.init_args.exclude FILE": "what to leave out, as in exclude.csv",
        "--data.init_args.heldout_path PATH": "images of the same kind that are not trained on",
        "--data.init_args.resolution N": "image size in pixels, a multiple of 8",
        "--data.init_args.batch_size N": "samples per step and process (16)",
    },
    more="--data --data.init_args --data.init_args.heldout_fraction "
    "--data.init_args.heldout=auto|split|edited|regularisation --data.init_args.heldout_most --data.init_args.repeats "
    "--data.init_args.duplicates --data.init_args.canaries --data.init_args.border_keys --data.init_args.families "
    "--data.init_args.scan --data.init_args.cache_latents=true|false --data.init_args.cache "
    "--data.init_args.masks=files|alpha|off --data.init_args.broken=stop|skip --data.init_args.broken_share "
    "--data.init_args.num_workers --data.init_args.caption_dropout --data.init_args.captions --data.init_args.seed "
    "--data.init_args.tokenizer --data.init_args.buckets --data.init_args.augment --data.init_args.regularisation",
)
MODEL = Group(
    "Model",
    {
        "--model.init_args.pretrained MODEL": "a folder, a file or a hub name",
        "--model.init_args.learning_rate X": "the peak of the learning rate",
    },
    more="--model --model.init_args --model.init_args.lora --model.init_args.objective --model.init_args.schedule "
    "--model.init_args.warmup_steps --model.init_args.optimizer --model.init_args.ema_decay "
    "--model.init_args.train_text_encoder=true|false --model.init_args.execution --model.init_args.seed",
)
LENGTH = Group(
    "Length and devices",
    {
        "--trainer.max_steps N": "stop after N optimizer steps",
        "--trainer.max_epochs N": "stop after N epochs",
        "--trainer.devices N": "GPUs of this machine",
    },
    more="--trainer --trainer.accelerator --trainer.strategy --trainer.num_nodes --trainer.precision "
    "--trainer.min_epochs --trainer.min_steps --trainer.max_time --trainer.accumulate_grad_batches "
    "--trainer.gradient_clip_val --trainer.gradient_clip_algorithm --trainer.limit_train_batches "
    "--trainer.limit_val_batches --trainer.limit_test_batches --trainer.limit_predict_batches "
    "--trainer.overfit_batches --trainer.val_check_interval --trainer.check_val_every_n_epoch "
    "--trainer.num_sanity_val_steps",
)
MONITOR = Group(
    "Monitor",
    {
        "--monitor.false_positive_rate X": "share that may be flagged by mistake",
        "--monitor.minimum_visits N": "visits before a sample can be flagged",
    },
    more="--monitor --monitor.reference --monitor.reference_folder --monitor.flag_by --monitor.signals "
    "--monitor.paired_every --monitor.sites --monitor.denoiser --monitor.key_field --monitor.settings",
)
LIGHTNING = Group(
    "Lightning's trainer",
    more="--trainer.callbacks --trainer.logger --trainer.log_every_n_steps --trainer.enable_checkpointing=true|false "
    "--trainer.enable_progress_bar=true|false --trainer.enable_model_summary=true|false --trainer.fast_dev_run "
    "--trainer.deterministic --trainer.benchmark=true|false --trainer.inference_mode=true|false "
    "--trainer.use_distributed_sampler=true|false --trainer.profiler --trainer.detect_anomaly=true|false "
    "--trainer.barebones=true|false --trainer.plugins --trainer.sync_batchnorm=true|false "
    "--trainer.reload_dataloaders_every_n_epochs --trainer.enable_autolog_hparams=true|false --trainer.model_registry",
)
TRAIN = Screen(
    "train",
    "Fine-tune a model, watch which training images it memorizes, and act on them.",
    {
        "memtrain train": "the embedded example, minutes on a CPU",
        "memtrain train --config sd15_lora --data.init_args.path my_folder": "",
    },
    (RUN, DATA, MODEL, LENGTH, MONITOR, LIGHTNING, SCREEN),
    note="`memtrain plan` with the same options says what a training would do and take.",
    left=38,
)
PLAN = Screen(
    "plan",
    "Print what `memtrain train` with the same options would do and take, without training. A problem that would "
    "end the training later ends this command with status 1.",
    {
        "memtrain plan": "the embedded example",
        "memtrain plan --config sdxl_lora --data.init_args.path my_folder": "",
    },
    (
        Group(
            "Plan",
            {
                "--measure": "time a few steps on the device of the run",
                "--json FILE": "also write the plan to FILE; sizes are in bytes",
            },
        ),
        Group("Output", {name: said for name, said in SCREEN.main.items() if name != "--json"}),
        *(group.folded() for group in (RUN, DATA, MODEL, LENGTH, MONITOR, LIGHTNING)),
    ),
    note="All other options are those of `memtrain train`. `--json` without FILE ends with one JSON object on "
    "standard output.",
)
REWIND = Screen(
    "rewind",
    "Train a run again without the samples that it flagged, from a checkpoint before the run learnt them.",
    {"memtrain rewind --run runs/mine": "trains into runs/mine_rewound"},
    (
        Group(
            "Run",
            {
                "--run FOLDER": "the folder of a finished or interrupted run (required)",
                "--output FOLDER": "the new folder; default: FOLDER_rewound",
                "--remaining X": "share of the flagged samples' visits that the checkpoint may hold (0.1)",
            },
            more=TRUST,
        ),
        SCREEN,
    ),
)
EXPORT = Screen(
    "export",
    "Write the model of a checkpoint in diffusers' format: a pipeline, an adapter file, or both.",
    {"memtrain export --ckpt runs/mine/checkpoints/last.ckpt --output exported": ""},
    (
        Group(
            "Model",
            {
                "--ckpt FILE": "a .ckpt file of memtrain (required)",
                "--output FOLDER": "default: exported/NAME in the run's folder",
                "--adapters lora|pipeline|both": "what to write of a LoRA training (both)",
                "--pretrained MODEL": "the model that training began with",
                "--pretrained_config MODEL": "where a single-file model's configurations are",
            },
            more=TRUST,
        ),
        SCREEN,
    ),
)
SCAN = Screen(
    "scan",
    "Find out which files of a data set are one picture, and which pictures share a caption. Training does the same "
    "by itself; this command shows it before training.",
    {
        "memtrain scan my_folder": "",
        "memtrain scan --config mine.yaml": "the data of a training",
        "memtrain scan 'shards/{0000..0099}.tar'": "WebDataset shards",
    },
    (
        Group(
            "Data",
            {
                "--config FILE": "the YAML of a training, whose data are scanned",
                "--broken stop|skip": "what to do about samples that cannot be used (stop)",
            },
            more="--data.init_args.path",
        ),
        Group(
            "Search",
            {
                "--false_merge_rate X": "share of pictures joined by mistake (0.01)",
                "--caption_level X": "word overlap of nearly equal captions (0.85)",
                "--workers N": "threads that decode images",
            },
            more="--descriptor --search=auto|exact|faiss",
        ),
        Group("Parts of the work", more="--shard --engine=local|ray --engine_address --engine_tasks"),
        Group(
            "Results",
            {"--output FOLDER": "default: runs/scan", **SCREEN.main},
            more="--trust",
        ),
    ),
    words="DATA",
    note="It writes report.html (contact sheets), exclude.csv (all files of a picture but the largest), "
    "families.parquet and scan.json.",
)
DEMO = Screen(
    "demo",
    "Train, watch and evaluate a small model that comes with memtrain, up to a report. It needs no GPU, no network "
    "and no download, and ten minutes on two cores.",
    {"memtrain demo": "750 steps into runs/tiny", "memtrain demo --fast": "a short look into runs/tiny_fast"},
    (
        Group(
            "Demo",
            {
                "--fast": "take a short look; its figures say little",
                "--output FOLDER": "the folder of the run (runs/tiny)",
                "--steps N": "training steps (750)",
            },
            more="--trust",
        ),
        SCREEN,
    ),
    note="A demo that was stopped goes on when the same command is given again.",
)
COMPLETION = Screen(
    "completion",
    "Print a script that lets a shell complete commands, options and the names of shipped configurations.",
    {
        'eval "$(memtrain completion bash)"': "in ~/.bashrc",
        "memtrain completion zsh > ~/.zfunc/_memtrain": "a folder of $fpath",
        "memtrain completion fish > ~/.config/fish/completions/memtrain.fish": "",
    },
    (),
    words="bash|zsh|fish",
)
