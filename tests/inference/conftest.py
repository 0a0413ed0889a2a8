"""Random pipelines of Stable Diffusion 2 and XL, beside that of Stable Diffusion 1 which all tests share."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@pytest.fixture(scope="session")
def sd2(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Other numbers of heads in every block, linear projections, and padding with a token that is not EOS."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            norm_num_groups=4,
        )
    vocabulary = {**pipeline.tokenizer.get_vocab(), "!": len(pipeline.tokenizer)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12, pad_token="!")
    return StableDiffusionPipeline(
        vae=pipeline.vae,
        text_encoder=_encoder(CLIPTextModel, len(vocabulary), tokenizer),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def sdxl(pipeline: StableDiffusionPipeline) -> StableDiffusionXLPipeline:
    """Two text encoders, several attentions in a block, and zeros as the unconditional text."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=2,
            transformer_layers_per_block=2,
            use_linear_projection=True,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
        )
    found = StableDiffusionXLPipeline(
        vae=pipeline.vae,
        text_encoder=_encoder(CLIPTextModel, len(pipeline.tokenizer), pipeline.tokenizer),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, len(pipeline.tokenizer), pipeline.tokenizer),
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer,
        unet=unet.eval(),
        scheduler=pipeline.scheduler,
        add_watermarker=False,
    )
    # Transformers puts hooks into a text encoder when its hidden states are first asked for.
    found.encode_prompt("a", device="cpu")
    return found


def _encoder(
    kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], words: int, tokenizer: CLIPTokenizer
) -> CLIPTextModel | CLIPTextModelWithProjection:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        configuration = CLIPTextConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=16,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return kind(configuration).eval()
