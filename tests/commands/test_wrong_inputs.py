"""Wrong inputs to every command: one clear sentence, exit code 2, before weights are loaded; nothing is written."""

import os
import sys

import pytest
from PIL import Image

from disa.commands import cli
from disa.weights import load
from tests.commands.harmon.conftest import CONFIG
from tests.helpers.scripts import exit_code, script

MAR = ("MAR_DiSA/main_mar.py", "--model mar_fashion --evaluate --num_images 4 --metrics none --device cpu")
MAR_TRAIN = ("MAR_DiSA/main_mar.py", "--model mar_fashion --device cpu")
BIG = ("MAR_DiSA/main_mar.py", "--model mar_base --evaluate --num_images 4 --metrics none --device cpu")
BIG_TRAIN = ("MAR_DiSA/main_mar.py", "--model mar_base --device cpu")
CACHE = ("MAR_DiSA/main_cache.py", "--device cpu --cached_path cached")
FLOWAR = ("FlowAR_DiSA/eval.py", "--model flowar_fashion --num_images 4 --metrics none --device cpu")
FLOWAR_TRAIN = ("FlowAR_DiSA/main_flowar.py", "--model flowar_fashion --evaluate --metrics none --device cpu")
XAR = ("xAR_DiSA/eval.py", "--model xar_fashion --num_images 4 --metrics none --device cpu")
XAR_TRAIN = ("xAR_DiSA/main_xar.py", "--model xar_fashion --evaluate --metrics none --device cpu")
DRAW = ("Harmon_DiSA/scripts/text2image.py", f"{CONFIG} --device cpu --output out/o.png")
BATCH = ("Harmon_DiSA/scripts/batch_text2image.py", f"{CONFIG} --device cpu --output out --data prompts.json")
ASK = ("Harmon_DiSA/scripts/image2text.py", f"{CONFIG} --device cpu --image picture.png")
TUNE = ("Harmon_DiSA/scripts/train.py", "configs/examples/harmon_fashion.py --device cpu --work-dir out")
DISA = ("disa", "")

# command, flags that make it wrong, part of the sentence
WRONG = [
    (MAR, "--model mar_fashoin", "'mar_fashoin' is unknown; did you mean mar_fashion?"),
    (MAR, "--num_itre 3", "unrecognized arguments: --num_itre 3; did you mean --num_iter?"),
    (MAR, "--num_iter 0", "--num_iter is 0; at least 1 AR step"),
    (MAR, "--num_iter 65", "--num_iter is 65"),
    (MAR, "--num_iter x", "--num_iter: invalid int value: 'x'"),
    (MAR, "--num_iter", "--num_iter: expected one argument"),
    (MAR, "--temperature -1", "--temperature is -1.0; it must be a finite number ≥ 0"),
    (MAR, "--temperature nan", "--temperature is nan"),
    (MAR, "--cfg -1", "--cfg: scale is -1.0"),
    (MAR, "--cfg inf", "--cfg: scale is inf"),
    (MAR, "--cfg_schedule cosine", "--cfg_schedule: schedule is 'cosine'; allowed are linear, constant"),
    (MAR, "--guidance 2", "--guidance: max_time is 2.0"),
    (MAR, "--guidance_min_time 2", "--guidance_min_time: min_time is 2.0"),
    (MAR, "--skip_guidance_below 0", "--skip_guidance_below: skip_below is 0.0"),
    (MAR, "--diff_sampler disa", "--diff_sampler: sampler is 'disa'; allowed are DiSA"),
    (MAR, "--diff_sampler euler", "--diff_sampler: sampler is 'euler'; allowed are"),
    (MAR, "--diff_upper_steps 2 --diff_lower_steps 3", "--diff_upper_steps: upper is 2, below lower = 3"),
    (MAR, "--diff_lower_steps 0", "--diff_lower_steps: lower is 0"),
    (MAR, "--diff_annealing_strategy steep", "--diff_annealing_strategy: strategy is 'steep'"),
    (MAR, "--diff_sampler default --diff_upper_steps 1500", "1500 diffusion steps cannot be taken"),
    (MAR, "--token_order spiral", "--token_order: 'spiral' is unknown; allowed are random"),
    (MAR, "--cache_tokens 0", "--cache_tokens: tokens is 0"),
    (MAR, "--cache_first -1", "--cache_first: first is -1"),
    (MAR, "--seed -1", "--seed is -1"),
    (MAR, "--seed 4294967296", "--seed is 4294967296"),
    (MAR, "--seed 1 2", "unrecognized arguments: 2"),
    (MAR, "--num_images 0", "num_images is 0; it must be at least 1"),
    (MAR, "--num_images 1 --metrics fid", "fid"),
    (MAR, "--eval_bsz 0", "--eval_bsz: batch_size is 0"),
    (MAR, "--class_num 0", "--class_num: num_classes is 0"),
    (MAR, "--patch_size 0", "--patch_size is 0"),
    (MAR, "--img_size 30", "30"),
    (MAR, "--vae_stride 0", "--vae_stride: latent_stride is 0"),
    (MAR, "--diffloss_w 0", "--diffloss_w: head_width is 0"),
    (MAR, "--buffer_size 0", "--buffer_size is 0"),
    (MAR, "--device tpu", "device is 'tpu'; allowed are auto, cuda, cpu and mps"),
    (MAR, "--device cpu:x", "device is 'cpu:x'"),
    (MAR, "--dtype int8", "--dtype: 'int8' is unknown; allowed are auto, float32"),
    (MAR, "--compile maybe", "--compile: 'maybe' is unknown"),
    (MAR, "--graphs on", "graph"),
    (MAR, "--metrics lpips", "--metrics has 'lpips'; allowed are"),
    (MAR, "--metrics fid --features vgg", "--features are 'vgg'; allowed are"),
    (MAR, "--metrics fid --reference nowhere", "there is no --reference nowhere"),
    (MAR, "--metrics accuracy --features efficientnet-lite0", "accuracy"),
    (MAR, "--resume nowhere.pth", "there is no checkpoint nowhere.pth"),
    (MAR, "--resume empty", "there is no checkpoint empty/checkpoint-last.pth"),
    (MAR, "--step_schedule nowhere.json", "there is no step schedule nowhere.json"),
    (MAR, "--step_schedule prompts.json", "prompts.json is no step schedule"),
    (MAR, "--output_dir /proc/nope", "--output_dir is in /proc/nope, where nothing can be written"),
    (MAR, "--output_dir picture.png", "--output_dir is in picture.png, where nothing can be written"),
    (MAR, "--log_dir /proc/nope", "--log_dir is in /proc/nope"),
    (BIG, "", "no weights of mar_base come with the package"),
    (BIG, "--resume nowhere", "there is no checkpoint nowhere"),
    (BIG, "--resume picture.png", "there is no VAE pretrained_models/vae/kl16.ckpt"),
    (BIG_TRAIN, "--data_path", "--data_path is empty"),
    (BIG_TRAIN, "--data_path nowhere", "nowhere has no class folders; give the right --data_path"),
    (BIG_TRAIN, "--data_path classes", "there is no VAE pretrained_models/vae/kl16.ckpt"),
    (BIG_TRAIN, "--use_cached", "--use_cached needs --cached_path"),
    (MAR_TRAIN, "--data_path classes", "classes holds no train-images-idx3-ubyte"),
    (MAR_TRAIN, "--data_path picture.png", "picture.png holds no train-images-idx3-ubyte"),
    (MAR_TRAIN, "--batch_size 0", "--batch_size is 0"),
    (MAR_TRAIN, "--epochs 0", "--epochs is 0"),
    (MAR_TRAIN, "--lr -1", "--lr is -1.0"),
    (MAR_TRAIN, "--lr nan", "--lr is nan"),
    (MAR_TRAIN, "--blr -1", "--blr is -1.0"),
    (MAR_TRAIN, "--weight_decay -1", "--weight_decay is -1.0"),
    (MAR_TRAIN, "--warmup_epochs -1", "--warmup_epochs is -1.0"),
    (MAR_TRAIN, "--ema_rate 1", "--ema_rate is 1.0"),
    (MAR_TRAIN, "--grad_clip -1", "--grad_clip is -1.0"),
    (MAR_TRAIN, "--lr_schedule step", "--lr_schedule: 'step' is unknown; allowed are constant, cosine"),
    (MAR_TRAIN, "--label_drop_prob 7", "--label_drop_prob is 7.0"),
    (MAR_TRAIN, "--mask_ratio_min 2", "--mask_ratio_min is 2.0"),
    (MAR_TRAIN, "--diffusion_batch_mul 0", "--diffusion_batch_mul is 0"),
    (MAR_TRAIN, "--save_last_freq 0", "--save_last_freq: save_epochs is 0"),
    (MAR_TRAIN, "--num_workers -1", "--num_workers is -1"),
    (MAR_TRAIN, "--seed -1", "--seed is -1"),
    (MAR_TRAIN, "--resume nowhere", "there is no checkpoint nowhere to resume from"),
    (MAR_TRAIN, "--output_dir /proc/nope", "--output_dir is in /proc/nope"),
    (MAR_TRAIN, "--online_eval --num_iter 0", "--num_iter is 0"),
    (MAR_TRAIN, "--online_eval --eval_bsz 0", "batch_size is 0"),
    (CACHE, "--cached_path", "--cached_path: expected one argument"),
    (CACHE, "--data_path classes --vae_path nowhere.ckpt", "there is no VAE nowhere.ckpt"),
    (CACHE, "--batch_size 0", "--batch_size is 0"),
    (CACHE, "--img_size 0", "--img_size is 0"),
    (CACHE, "--img_size 30", "--img_size is 30"),
    (CACHE, "--data_path nowhere", "nowhere has no class folders"),
    (CACHE, "--data_path classes --cached_path /proc/nope", "--cached_path is in /proc/nope"),
    (FLOWAR, "--scales 1 3 5", "scales"),
    (FLOWAR, "--scales", "--scales: expected at least one argument"),
    (FLOWAR, "--flow_sampler DiSA", "--flow_sampler: sampler is 'DiSA'; allowed are euler"),
    (FLOWAR, "--flow_upper_steps 0", "upper is 0"),
    (FLOWAR, "--feature_every 0", "--feature_every: every is 0"),
    (FLOWAR, "--patch_size 2", "--patch_size: '2' is unknown; allowed are 1"),
    (FLOWAR, "--model mar_fashion", "--model: 'mar_fashion' is unknown"),
    (FLOWAR_TRAIN, "--num_step 0", "--num_step: lower is 0"),
    (XAR, "--cells_per_side 3", "3"),
    (XAR, "--cells_per_side 0", "--cells_per_side is 0"),
    (XAR, "--flow_annealing_strategy steep", "--flow_annealing_strategy: strategy is 'steep'"),
    (XAR, "--guidance -1", "--guidance: max_time is -1.0"),
    (XAR_TRAIN, "--num_sampling_steps few", "--num_sampling_steps: invalid int value: 'few'"),
    (XAR_TRAIN, "--num_sampling_steps 0", "--num_sampling_steps: lower is 0"),
    (DRAW, "--checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DRAW, "--vae_path nowhere.ckpt", "there is no VAE nowhere.ckpt"),
    (DRAW, "--num_iter 0", "--num_iter is 0"),
    (DRAW, "--num_iter 65", "--num_iter is 65; an image of 64 tokens takes 1 to 64 AR steps"),
    (DRAW, "--image_size 30", "--image_size is 30; a multiple of 4 is needed"),
    (DRAW, "--image_size big", "--image_size is big"),
    (DRAW, "--sampler disa", "--sampler is 'disa'; allowed are DiSA"),
    (DRAW, "--upper_steps 2", "--upper_steps: upper is 2, below lower"),
    (DRAW, "--annealing_strategy steep", "--annealing_strategy: strategy is 'steep'"),
    (DRAW, "--cfg -1", "--cfg: scale is -1.0"),
    (DRAW, "--temperature -1", "--temperature is -1.0"),
    (DRAW, "--grid_size 0", "--grid_size is 0"),
    (DRAW, "--batch_size 0", "--batch_size is 0"),
    (DRAW, "--seed 1 -2", "--seed is -2"),
    (DRAW, "--prompt_file nowhere.txt", "--prompt_file nowhere.txt cannot be read"),
    (DRAW, "--prompt_file picture.png", "--prompt_file picture.png cannot be read"),
    (DRAW, "--prompt_file empty", "--prompt_file empty cannot be read"),
    (DRAW, "--prompt a --prompt_file b", "not allowed with argument --prompt"),
    (DRAW, "--output /proc/x.png", "--output is in /proc, where nothing can be written"),
    (DRAW, "--output o.gif", "--output is o.gif; a name that ends in .png"),
    (DRAW, "--output folder.png", "--output would replace the folder folder.png"),
    (DRAW, "--promt a", "did you mean --prompt?"),
    (BATCH, "--data nowhere.json", "there is no --data nowhere.json"),
    (BATCH, "--data picture.png", "--data picture.png cannot be read as JSON"),
    (BATCH, "--data numbers.json", "entry 0 of --data numbers.json is 1"),
    (BATCH, "--num_iter 0", "--num_iter is 0"),
    (BATCH, "--layout tidy", "--layout: 'tidy' is unknown; allowed are flat, geneval"),
    (BATCH, "--output /proc/nope", "--output is in /proc/nope"),
    (BATCH, "--checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (ASK, "--image nowhere.png", "nowhere.png"),
    (ASK, "--image prompts.json", "prompts.json"),
    (ASK, "--max_new_tokens 0", "--max_new_tokens is 0"),
    (ASK, "--image_size 30", "--image_size is 30"),
    (ASK, "--prompt", "--prompt: expected one argument"),
    (TUNE, "--cfg-options training.lr=oops", "lr is 'oops'"),
    (TUNE, "--cfg-options training.epochs=one", "epochs is 'one'; a whole number is needed"),
    (TUNE, "--cfg-options training.batch_size=1.5", "batch_size is 1.5; a whole number is needed"),
    (TUNE, "--cfg-options training.speed=1", "training has speed; allowed are"),
    (TUNE, "--cfg-options training.dtype=int8", "training.dtype is 'int8'; allowed are"),
    (TUNE, "--cfg-options training=1", "training is 1"),
    (TUNE, "--cfg-options foo", "--cfg-options has 'foo'; name=value is needed"),
    (TUNE, "--cfg-options data=foo", "data is 'foo'"),
    (TUNE, "--cfg-options data.type=folders", "data.type is 'folders'"),
    (TUNE, "--cfg-options mar.foo=1", "unexpected keyword argument 'foo'"),
    (TUNE, "--cfg-options mar.num_heads=5", "width is 144; it must be a multiple of num_heads = 5"),
    (TUNE, "--cfg-options model=harmony", "model is 'harmony'; allowed are"),
    (TUNE, "--cfg-options checkpoint=nowhere.pth", "there is no checkpoint nowhere.pth"),
    (TUNE, "--resume nowhere.pth", "there is no checkpoint nowhere.pth to resume from"),
    (TUNE, "--seed x", "--seed: invalid int value: 'x'"),
    (TUNE, "--work-dir /proc/nope", "--work-dir is in /proc/nope"),
    (DISA, "", "the following arguments are required: COMMAND"),
    (DISA, "reprodcue", "'reprodcue' is unknown; did you mean reproduce?"),
    (DISA, "reproduce", "nothing is asked for"),
    (DISA, "reproduce nowhere", "there is no table or recipe nowhere"),
    (DISA, "reproduce bundled --metrics foo", "--metrics has 'foo'; allowed are"),
    (DISA, "reproduce bundled --features foo", "--features are 'foo'; allowed are"),
    (DISA, "reproduce bundled --reference nowhere", "there is no --reference nowhere"),
    (DISA, "reproduce bundled --images 0", "--images: num_images is 0"),
    (DISA, "reproduce bundled --batch_size 0", "--batch_size is 0"),
    (DISA, "reproduce bundled --out /proc/nope", "/proc/nope"),
    (DISA, "reproduce bundled --device tpu", "device is 'tpu'"),
    (DISA, "sweep nowhere", "there is no recipe of 'nowhere'"),
    (DISA, "sweep mar_fashion --num_iter 0", "--num_iter is 0"),
    (DISA, "sweep mar_fashion --flow_sampler euler", "flow_sampler"),
    (DISA, "sweep mar_fashion --accelerate fast", "--accelerate: 'fast' is unknown"),
    (DISA, "sweep mar_fashion --cfg 1 --out /proc/nope", "/proc/nope"),
    (DISA, "calibrate mar_fashoin", "there is no recipe of 'mar_fashoin'"),
    (DISA, "calibrate mar_fashion --budget 3", "--budget is 3"),
    (DISA, "calibrate mar_fashion --quality 0", "--quality is 0.0"),
    (DISA, "calibrate mar_fashion --budget 3 --quality 1", "not allowed with argument --budget"),
    (DISA, "calibrate mar_fashion --out o.txt", "out is o.txt; a name that ends in .json"),
    (DISA, "calibrate mar_fashion --out /proc/nope/o.json", "--out is in /proc/nope"),
    (DISA, "calibrate mar_fashion --checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "calibrate mar_fashion --draws 1", "--draws is 1"),
    (DISA, "calibrate mar_fashion --batch_size 1", "--batch_size is 1"),
    (DISA, "evidence mar_fashion", "the following arguments are required: --out"),
    (DISA, "evidence mar_fashion --out out --images 1", "--images is 1"),
    (DISA, "evidence mar_fashion --out /proc/nope", "--out is in /proc/nope"),
    (DISA, "evidence mar_fashion --out out --checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "stats nowhere --out o.npz", "there are no images in nowhere"),
    (DISA, "stats classes --out o.txt", "--out is o.txt; statistics are an .npz file"),
    (DISA, "stats classes --batch_size 0", "--batch_size is 0"),
    (DISA, "stats classes --image_size 0", "--image_size is 0"),
    (DISA, "stats classes --features vgg", "vgg"),
    (DISA, "stats classes --features fashion-classifier --out /proc/nope/o.npz", "--out is in /proc/nope"),
    (DISA, "checkpoints", "COMMAND"),
    (DISA, "checkpoints fetch mar_bsae", "there is no published file 'mar_bsae'"),
    (DISA, "checkpoints verify nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "checkpoints verify prompts.json", "prompts.json cannot be read as a checkpoint; it holds text"),
    (DISA, "checkpoints export prompts.json o.safetensors", "it holds text"),
    (DISA, "checkpoints export nowhere.pth o.safetensors", "there is no checkpoint nowhere.pth"),
    (DISA, "checkpoints export nowhere.pth", "the following arguments are required: OUT"),
    (DISA, "generate", "the following arguments are required: MODEL"),
    (DISA, "generate mar_fashion", "one of the arguments --labels --prompt --prompt_file is required"),
    (DISA, "generate mar_fashoin --labels 1", "there is no model or folder 'mar_fashoin'; did you mean mar_fashion?"),
    (DISA, "generate nowhere/ --labels 1", "nowhere/"),
    (DISA, "generate mar_fashion --labels bga", "--labels has 'bga'; mar_fashion knows 0 to 9 (t-shirt, trouser"),
    (DISA, "generate mar_fashion --labels 10", "--labels has '10'; mar_fashion knows 0 to 9"),
    (DISA, "generate mar_fashion --labels -1", "--labels has '-1'"),
    (DISA, "generate mar_fashion --labels 1 --prompt a", "--prompt: not allowed with argument --labels"),
    (DISA, "generate mar_fashion --prompt a", "mar_fashion takes labels, and no prompts; give --labels"),
    (DISA, "generate harmon_fashion --labels 1", "harmon_fashion takes prompts, and no labels; give --prompt"),
    (DISA, "generate harmon_fashion --prompt_file nowhere", "--prompt_file nowhere cannot be read"),
    (DISA, "generate harmon_fashion --prompt_file picture.png", "--prompt_file picture.png cannot be read"),
    (DISA, "generate harmon_fashion --prompt a --image_size 30", "--image_size is 30; a multiple of 4"),
    (DISA, "generate mar_fashion --labels 1 --image_size 32", "--image_size is '32'; mar_fashion is not of Harmon"),
    (DISA, "generate mar_fashion --labels 1 --negative_prompt a", "--negative_prompt is 'a'"),
    (DISA, "generate mar_fashion --labels 1 --seeds x", "--seeds: invalid int value: 'x'"),
    (DISA, "generate mar_fashion --labels 1 --seeds -1", "--seeds has -1"),
    (DISA, "generate mar_fashion --labels 1 2 --seeds 1 2 3", "--seeds: 3 seeds cannot be shared out evenly over 2"),
    (DISA, "generate mar_fashion --labels 1 2 --num_images 1", "--num_images: 1 pictures cannot be shared out evenly"),
    (DISA, "generate mar_fashion --labels 1 --num_images 0", "--num_images is 0"),
    (DISA, "generate mar_fashion --labels 1 --num_images 2 --seeds 1", "not allowed with argument --num_images"),
    (DISA, "generate mar_fashion --labels 1 --sedes 1", "did you mean --seeds?"),
    (DISA, "generate mar_fashion --labels 1 --num_iter 0", "--num_iter is 0"),
    (DISA, "generate mar_fashion --labels 1 --num_iter 65", "--num_iter is 65; an image of 64 tokens"),
    (DISA, "generate xar_fashion --labels 1 --num_iter 4", "--num_iter is 4; the AR steps of xar_fashion are fixed"),
    (DISA, "generate mar_fashion --labels 1 --upper_steps 7", "--upper_steps: upper is 7, below lower = 8"),
    (DISA, "generate mar_fashion --labels 1 --lower_steps 0", "--lower_steps: lower is 0"),
    (DISA, "generate mar_fashion --labels 1 --annealing_strategy up", "--annealing_strategy: strategy is 'up'"),
    (DISA, "generate mar_fashion --labels 1 --step_schedule nowhere.json", "there is no step schedule nowhere.json"),
    (DISA, "generate mar_fashion --labels 1 --sampler euler", "--sampler is 'euler'; allowed are DiSA"),
    (DISA, "generate flowar_fashion --labels 1 --sampler DiSA", "--sampler is 'DiSA'; allowed are euler"),
    (DISA, "generate mar_fashion --labels 1 --cfg -1", "--cfg: scale is -1.0"),
    (DISA, "generate mar_fashion --labels 1 --temperature nan", "--temperature is nan"),
    (DISA, "generate mar_fashion --labels 1 --device tpu", "device is 'tpu'"),
    (DISA, "generate mar_fashion --labels 1 --dtype int8", "--dtype: 'int8' is unknown"),
    (DISA, "generate mar_fashion --labels 1 --checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "generate mar_base --labels 1 --checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "generate mar_base --labels 1 --vae_path nowhere.ckpt", "there is no VAE nowhere.ckpt"),
    (DISA, "generate mar_base --labels 1000", "--labels has '1000'; mar_base knows 0 to 999"),
    (DISA, "generate mar_fashion --labels 1 --scale 0", "--scale is 0"),
    (DISA, "generate mar_fashion --labels 1 --out picture.png", "--out would overwrite picture.png"),
    (DISA, "generate mar_fashion --labels 1 --out o.jpg", "--out is o.jpg; a name that ends in .png or .gif"),
    (DISA, "generate mar_fashion --labels 1 2 --out o.png", "--out is o.png, and there are 2 pictures"),
    (DISA, "generate mar_fashion --labels 1 --out picture.png/o", "--out is in picture.png/o"),
    (DISA, "generate mar_fashion --labels 1 --out /proc/nope", "--out is in /proc/nope"),
    (DISA, "generate mar_fashion --labels 1 --edit picture.png", "--edit and --mask go together"),
    (DISA, "generate mar_fashion --labels 1 --edit nowhere --mask picture.png", "nowhere cannot be read as an image"),
    (DISA, "generate xar_fashion --labels 1 --edit picture.png --mask picture.png", "only MAR and Harmon can --edit"),
    (DISA, "score", "the following arguments are required: IMAGES"),
    (DISA, "score nowhere", "there are no images in nowhere"),
    (DISA, "score prompts.json", "prompts.json is no folder, and no .npz file with images"),
    (DISA, "score classes --metrics lpips", "--metrics has 'lpips'; allowed are"),
    (DISA, "score classes --metrics accuracy", "--metrics has 'accuracy', which needs the labels"),
    (DISA, "score classes --metrics none", "--metrics none measures nothing"),
    (DISA, "score classes --features vgg", "--features are 'vgg'; allowed are"),
    (DISA, "score classes --reference nowhere", "there is no --reference nowhere"),
    (DISA, "score classes --reference empty --features fashion-classifier", "there are no images in empty"),
    (DISA, "score classes --reference prompts.json --features fashion-classifier", "is not a statistics file"),
    (DISA, "score classes --reference classes --features fashion-classifier", "fid needs at least 2 images"),
    (DISA, "score classes --metrics kid --features fashion-classifier", "needs a reference with features"),
    (DISA, "score classes --batch_size 0", "--batch_size is 0"),
    (DISA, "score classes --out o.txt", "--out is o.txt; a name that ends in .json"),
    (DISA, "score classes --out prompts.json", "--out would overwrite prompts.json"),
    (DISA, "score classes --out /proc/nope/o.json", "--out is in /proc/nope"),
    (DISA, "score classes --device tpu", "device is 'tpu'"),
    (DISA, "evaluate", "the following arguments are required: MODEL"),
    (DISA, "evaluate mar_fashoin", "there is no model 'mar_fashoin' here; did you mean mar_fashion?"),
    (DISA, "evaluate harmon_fashion", "harmon_fashion is measured by recipes"),
    (DISA, "evaluate xar_fashion --num_itr 3", "unrecognized arguments: --num_itr 3"),
    (DISA, "evaluate mar_fashion --num_iter 0", "--num_iter is 0"),
    (DISA, "evaluate mar_base --metrics none --resume nowhere", "there is no checkpoint nowhere"),
    (DISA, "train", "the following arguments are required: MODEL"),
    (DISA, "train flowar_fashoin", "did you mean flowar_fashion?"),
    (DISA, "train mar_fashion --lr -1", "--lr is -1.0"),
    (DISA, "train harmon_0.5b", "no config of 'harmon_0.5b' comes with the package"),
    (DISA, "train nowhere.py", "there is no config nowhere.py"),
    (DISA, "train harmon_fashion --cfg-options foo", "--cfg-options has 'foo'"),
    (DISA, "demo --models mar_base", "--models: 'mar_base' is unknown"),
    (DISA, "demo --out picture.png", "--out is in picture.png"),
    (DISA, "--print-completion fish", "'fish' is unknown; allowed are bash, zsh"),
    (DISA, "genrate", "'genrate' is unknown; did you mean generate?"),
]


def wrong(command, flags):
    return f"{command[0].rpartition('/')[2]} {flags}".strip()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with some files, to stand in; weights are not loaded in it."""

    def loaded(_model, _state, source):
        raise AssertionError(f"{source} was loaded")

    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "classes" / "one").mkdir(parents=True)
    for path in ("picture.png", "classes/one/1.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / path)
    (tmp_path / "prompts.json").write_text('["a bag"]')
    (tmp_path / "numbers.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(load, "load_into", loaded)
    return tmp_path


def files(folder):
    return sorted(folder.rglob("*"))


def refusal(command, flags, monkeypatch, capsys):
    """What a command prints to stderr; its exit code must be 2."""
    name, base = command
    words = [*base.split(), *flags.split()]
    main = (lambda: cli.main(words)) if name == "disa" else script(name).main
    monkeypatch.setattr(sys, "argv", [os.path.basename(name), *words])
    code = exit_code(main)
    error = capsys.readouterr().err
    assert code == 2, error
    return error


@pytest.mark.parametrize(("command", "flags", "named"), WRONG, ids=[wrong(*one[:2]) for one in WRONG])
def test_a_wrong_input_ends_in_one_sentence(command, flags, named, place, monkeypatch, capsys):
    before = files(place)
    error = refusal(command, flags, monkeypatch, capsys)
    sentences = [line for line in error.splitlines() if line.startswith("error: ")]
    assert sentences == error.splitlines()[-1:], error
    assert named in sentences[0]
    assert "Traceback" not in error
    assert files(place) == before


def test_there_are_enough_of_them():
    assert len({(command, flags) for command, flags, _ in WRONG}) == len(WRONG) >= 100
