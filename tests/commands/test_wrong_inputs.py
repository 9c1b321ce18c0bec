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
    (DISA, "checkpoints verify prompts.json", "prompts.json cannot be read as a checkpoint; it is none"),
    (DISA, "checkpoints export prompts.json o.safetensors", "it is none"),
    (DISA, "checkpoints export nowhere.pth o.safetensors", "there is no checkpoint nowhere.pth"),
    (DISA, "checkpoints export nowhere.pth", "the following arguments are required: OUT"),
    (MAR, "--tracker mlflow", "--tracker: 'mlflow' is unknown; allowed are tensorboard, wandb"),
    (MAR, "extra words", "unrecognized arguments: extra words"),
    (MAR, "--cfg 1e400", "--cfg: scale is inf"),
    (MAR, "--cfg two", "--cfg: invalid float value: 'two'"),
    (MAR, "--num_images 1e3", "--num_images: invalid int value: '1e3'"),
    (MAR, "--num_images -4", "--num_images is -4"),
    (MAR, "--seed 1.5", "--seed: invalid int value"),
    (MAR, "--diffloss_d 0", "--diffloss_d: head_depth is 0"),
    (MAR, "--buffer_size -1", "--buffer_size is -1"),
    (MAR, "--img_size -32", "--img_size: image_size is -32"),
    (MAR, "--vae_embed_dim 0", "--vae_embed_dim: latent_channels is 0"),
    (MAR, "--vae_stride 3", "--img_size: image_size is 32; it must be a multiple"),
    (MAR, "--patch_size 8", "--num_iter is 16; there must be 1 to 1 AR steps"),
    (MAR, "--diff_lower_steps 99", "--diff_upper_steps: upper is 40, below lower = 99"),
    (MAR, "--cache_conditions 0", "--cache_conditions: conditions is 0"),
    (MAR, "--tokens_per_step few", "--tokens_per_step: 'few' is unknown; allowed are cosine, stages"),
    (MAR, "--guidance nan", "--guidance: max_time is nan"),
    (MAR, "--skip_guidance_below nan", "--skip_guidance_below: skip_below is nan"),
    (MAR, "--resume picture.png", "picture.png cannot be read as a checkpoint; it is none: give a checkpoint"),
    (MAR, "--resume prompts.json", "prompts.json cannot be read as a checkpoint; it is none: give a checkpoint"),
    (MAR, "--step_schedule picture.png", "picture.png is no step schedule"),
    (MAR, "--step_schedule force:nowhere.json", "there is no step schedule nowhere.json"),
    (MAR, "--metrics fid --reference picture.png", "--reference is picture.png; a statistics file (.npz) or a folder"),
    (MAR, "--metrics fid --reference empty", "there are no images in empty"),
    (MAR, "--metrics fid,,isc", "--metrics has ''; allowed are"),
    (MAR, "--metrics none,fid", "--metrics has 'none'"),
    (MAR, "--device mps", "--device is 'mps', but this machine has none"),
    (MAR, "--output_dir prompts.json/x", "--output_dir is in prompts.json/x"),
    (MAR, "--model xar_fashion", "'xar_fashion' is unknown; did you mean mar_fashion?"),
    (MAR_TRAIN, "--attn_dropout 2", "--attn_dropout is 2.0; it must be in [0, 1]"),
    (MAR_TRAIN, "--proj_dropout -1", "--proj_dropout is -1.0"),
    (MAR_TRAIN, "--lr oops", "--lr: invalid float value: 'oops'"),
    (MAR_TRAIN, "--epochs 1.5", "--epochs: invalid int value: '1.5'"),
    (MAR_TRAIN, "--min_lr -1", "--min_lr is -1.0"),
    (MAR_TRAIN, "--eval_freq 0 --online_eval", "--eval_freq: eval_epochs is 0"),
    (MAR_TRAIN, "--online_eval --metrics foo", "--metrics has 'foo'"),
    (MAR_TRAIN, "--online_eval --step_schedule nowhere.json", "there is no step schedule nowhere.json"),
    (MAR_TRAIN, "--use_cached --cached_path classes", "classes has no latents of main_cache.py of the classes one"),
    (MAR_TRAIN, "--use_cached --cached_path empty", "empty has no class folders; give the right --cached_path"),
    (MAR_TRAIN, "--resume empty", "there is no checkpoint empty/checkpoint-last.pth to resume from"),
    (MAR_TRAIN, "--log_dir picture.png", "--log_dir is in picture.png"),
    (MAR_TRAIN, "--data_path numbers.json", "numbers.json holds no train-images-idx3-ubyte"),
    (CACHE, "--data_path classes --vae_path picture.png", "picture.png cannot be read as a checkpoint; it is none"),
    (CACHE, "--data_path bare", "bare has no images of the classes one"),
    (CACHE, "--num_workers -1", "--num_workers is -1"),
    (CACHE, "--data_path classes --cached_path picture.png", "--cached_path is in picture.png"),
    (CACHE, "--device tpu", "--device is 'tpu'; allowed are"),
    (FLOWAR, "--scales 1 2 0", "--scales are (1, 2, 0); they must ascend"),
    (FLOWAR, "--feature_order -1", "--feature_order: order is -1"),
    (FLOWAR, "--flow_lower_steps 99", "below lower = 99"),
    (FLOWAR, "--num_iter 4", "unrecognized arguments: --num_iter 4"),
    (FLOWAR, "--cfg_schedule cosine", "--cfg_schedule: schedule is 'cosine'"),
    (FLOWAR_TRAIN, "--flow_upper_steps 4", "unrecognized arguments: --flow_upper_steps 4"),
    (FLOWAR_TRAIN, "--num_step -1", "--num_step: lower is -1"),
    (XAR, "--cells_per_side -2", "--cells_per_side is -2"),
    (XAR, "--temperature -2", "--temperature is -2.0"),
    (XAR, "--patch_size 2", "--patch_size: '2' is unknown; allowed are 1"),
    (XAR, "--resume nowhere", "there is no checkpoint nowhere"),
    (DRAW, "--prompt_file long.txt", "the prompt 'very very very very very very very very '… takes 2412 tokens"),
    (DRAW, "--image_size 1024", "has room for 0; take a smaller image"),
    (DRAW, "--image_size 32x32x32", "--image_size is 32x32x32"),
    (DRAW, "--image_size -32", "--image_size is -32"),
    (DRAW, "--seed", "--seed: expected at least one argument"),
    (DRAW, "--seed 1 2 x", "--seed: invalid int value: 'x'"),
    (DRAW, "--output prompts.json/o.png", "--output is in prompts.json"),
    (DRAW, "--negative_prompt", "--cfg_prompt/--negative_prompt: expected one argument"),
    (DRAW, "--lower_steps 99", "--upper_steps: upper is 40, below lower = 99"),
    (DRAW, "--cache_tokens 0", "--cache_tokens: tokens is 0"),
    (DRAW, "--step_schedule numbers.json", "numbers.json is no step schedule"),
    (DRAW, "--device tpu", "--device is 'tpu'; allowed are"),
    (DRAW, "--graphs on", "graphs needs a CUDA device"),
    (DRAW, "--checkpoint prompts.json", "it is none: give a checkpoint"),
    (DRAW, "--num_images 3", "unrecognized arguments: --num_images 3; did you mean --num_iter?"),
    (BATCH, "--data empty.json", "--data empty.json holds no list of prompts"),
    (BATCH, "--data unasked.json", "a prompt is empty"),
    (BATCH, "--seed 1 2", "unrecognized arguments: 2"),
    (BATCH, "--image_size 1024", "has room for 0; take a smaller image"),
    (BATCH, "--output classes", "classes holds images but no settings.json"),
    (BATCH, "--output picture.png", "--output is in picture.png"),
    (BATCH, "--device tpu", "--device is 'tpu'"),
    (ASK, "--image empty", "empty cannot be read as an image"),
    (ASK, "--image_size 1024", "the prompt and the image take 65555 tokens, 65044 too many; take a smaller image"),
    (ASK, "--checkpoint nowhere.pth", "there is no checkpoint nowhere.pth"),
    (ASK, "--vae_path nowhere", "there is no VAE nowhere"),
    (ASK, "--device tpu", "--device is 'tpu'"),
    (TUNE, "--cfg-options =3", "has an empty name; allowed are"),
    (TUNE, "--cfg-options training.tracker=mlflow", "tracker is 'mlflow'; allowed are tensorboard, wandb"),
    (TUNE, "--cfg-options training.pin_memory=maybe", "pin_memory is 'maybe'; it must be True or False"),
    (TUNE, "--cfg-options training.ema_rate=1", "ema_rate is 1"),
    (TUNE, "--cfg-options freeze_llm=maybe", "freeze_llm is 'maybe'; True or False is needed"),
    (TUNE, "--cfg-options mar.width=x", "the config's mar or llm does not fit"),
    (TUNE, "--cfg-options llm.hidden_size=0", "the config's mar or llm does not fit"),
    (TUNE, "--cfg-options mar=3", "mar is 3; names and values are needed"),
    (TUNE, "--cfg-options model=mar_fashion", "model is 'mar_fashion'; allowed are harmon"),
    (TUNE, "--cfg-options data.foo=1", "the config's data does not fit"),
    (TUNE, "--cfg-options data.drop=2", "data.drop is 2; a share in [0, 1] is needed"),
    (TUNE, "--cfg-options mar_weights=prompts.json", "it is none: give a checkpoint"),
    (TUNE, "--cfg-options vae_path=nowhere.ckpt", "there is no VAE nowhere.ckpt"),
    (TUNE, "--cfg-options text_tokenizer=nowhere.json", "nowhere.json cannot be read as a text tokenizer"),
    (TUNE, "--seed -1", "seed is -1"),
    (TUNE, "--launcher slurm", "--launcher: 'slurm' is unknown; allowed are none, pytorch"),
    (TUNE, "--device tpu", "device is 'tpu'"),
    (DISA, "reproduce --recipes nowhere.toml", "there is no file of recipes nowhere.toml"),
    (DISA, "reproduce --recipes picture.png", "picture.png: "),
    (DISA, "reproduce --recipes broken.toml", "broken.toml: "),
    (DISA, "reproduce --recipes cfg.toml", "cfg.toml: mine/mar_fashion-one: cfg: scale is -2.0"),
    (
        DISA,
        "reproduce --recipes steps.toml",
        "takes 1 to 64 AR steps (mine/mar_fashion-one)",
    ),
    (DISA, "reproduce --recipes rows.toml", "rows.toml: mine: mar_fashion has no rows"),
    (
        DISA,
        "reproduce --recipes setting.toml",
        "setting.toml: mine/mar_fashion-one: there is no setting temprature",
    ),
    (
        DISA,
        "reproduce --recipes model.toml",
        "model.toml: mine: there is no model mar_fashon; did you mean",
    ),
    (DISA, "reproduce --recipes baseline.toml", "baseline.toml: mine/mar_fashion-one: its baseline two is no row"),
    (DISA, "reproduce --recipes twice.toml", "twice.toml: there are two recipes bundled/mar_fashion-disa"),
    (DISA, "reproduce --recipes mine.toml mien", "there is no table or recipe mien; did you mean mine?"),
    (DISA, "reproduce --list nowhere", "there is no table or recipe nowhere; `disa reproduce --list` prints them"),
    (DISA, "reproduce --list bundlde", "there is no table or recipe bundlde; did you mean bundled?"),
    (DISA, "reproduce bundled/mar_fashion-dsia", "did you mean bundled/mar_fashion-disa?"),
    (DISA, "reproduce bundled --out picture.png", "--out is in picture.png, where nothing can be written"),
    (DISA, "reproduce bundled --reference picture.png", "--reference is picture.png; a statistics file (.npz)"),
    (DISA, "reproduce bundled --bacth_size 3", "did you mean --batch_size?"),
    (DISA, "sweep mar_fashoin --cfg 1", "there is no recipe of 'mar_fashoin'; did you mean mar_fashion?"),
    (DISA, "sweep mar_fashion", "nothing is varied"),
    (DISA, "sweep mar_fashion --cfg nan", "--cfg: scale is nan"),
    (DISA, "sweep mar_fashion --cfg x", "--cfg: invalid float value: 'x'"),
    (DISA, "sweep mar_fashion --num_iter 65", "--num_iter is 65; an image of 64 tokens"),
    (DISA, "sweep mar_fashion --diff_sampler disa", "--diff_sampler: sampler is 'disa'"),
    (DISA, "sweep mar_fashion --cfg 1 --resume nowhere.pth", "there is no checkpoint nowhere.pth"),
    (DISA, "sweep xar_fashion --accelerate gtr", "xar_fashion has no accelerator gtr"),
    (DISA, "calibrate mar_fashion --num_iter 65", "--num_iter is 65; an image of 64 tokens"),
    (DISA, "calibrate mar_fashion --quality nan", "--quality is nan"),
    (DISA, "calibrate mar_fashion --checkpoint picture.png", "it is none: give a checkpoint"),
    (DISA, "evidence mar_fashion --out out --num_iter 65", "--num_iter is 65; an image of 64 tokens"),
    (DISA, "evidence mar_fashion --out out --draws 0", "--draws is 0"),
    (DISA, "evidence mar_fashion --out out --cfg nan", "--cfg: scale is nan"),
    (DISA, "stats fashion-minst --out o.npz", "there are no images in fashion-minst; did you mean fashion-mnist?"),
    (DISA, "stats classes --features fashion-clasifier", "--features are 'fashion-clasifier'; allowed are"),
    (DISA, "stats fashion-mnist --image_size 32", "--image_size is for a folder of images"),
    (DISA, "checkpoints nope", "'nope' is unknown; allowed are"),
    (DISA, "checkpoints verify picture.png", "picture.png cannot be read as a checkpoint; it is none"),
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
    (DISA, "score classes --reference prompts.json --features fashion-classifier", "a statistics file (.npz)"),
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


RECIPES = """[mine]
title = "Mine"
num_images = 4
batch_size = 2
diff_sampler = "DiSA"
diff_annealing_strategy = "linear"
diff_upper_steps = 4
diff_lower_steps = 2
num_iter = 2
cfg = 2.0
cfg_schedule = "linear"
temperature = 1.0
seed = 1
[mine.mar_fashion]
rows.one = {}
"""
FILES = {
    "prompts.json": '["a bag"]',
    "numbers.json": "[1]",
    "empty.json": "[]",
    "unasked.json": '["a bag", ""]',
    "long.txt": "very " * 600,
    "mine.toml": RECIPES,
    "cfg.toml": RECIPES.replace("cfg = 2.0", "cfg = -2.0"),
    "steps.toml": RECIPES.replace("num_iter = 2", "num_iter = 65"),
    "rows.toml": RECIPES.replace("rows.one = {}", ""),
    "setting.toml": RECIPES.replace("temperature", "temprature"),
    "model.toml": RECIPES.replace("mar_fashion", "mar_fashon"),
    "baseline.toml": RECIPES.replace("rows.one = {}", "rows.one = { baseline = 'two' }"),
    "twice.toml": RECIPES.replace("[mine", "[bundled").replace('title = "Mine"', "").replace("one =", "disa ="),
    "broken.toml": "[mine",
    "config.py": "model = 'harmon_fashion'",
    "other.py": "model = 'mar_fashion'\ntext_tokenizer = None\nsampler = 'DiSA'\n"
    "schedule = dict(upper=4, lower=2, strategy='linear')\ndefaults = {}",
    "raises.py": "1 / 0",
}


def set_up(folder):
    """Write some files, to stand in."""
    (folder / "empty").mkdir()
    (folder / "folder.png").mkdir()
    for name in ("classes", "bare"):
        (folder / name / "one").mkdir(parents=True)
    for path in ("picture.png", "classes/one/1.png"):
        Image.new("RGB", (40, 40)).save(folder / path)
    for name, text in FILES.items():
        (folder / name).write_text(text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with some files, to stand in; weights are not loaded in it."""

    def loaded(_model, _state, source):
        raise AssertionError(f"{source} was loaded")

    set_up(tmp_path)
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
    assert len({(command, flags) for command, flags, _ in WRONG}) == len(WRONG) >= 300
