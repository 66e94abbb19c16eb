"""The eight GPT-3 models of table 2.1 as data.

Source: Brown et al. 2020 (arXiv 2005.14165), table 2.1 and appendix D. Two cells of the printed table contradict the
rest of the paper: 24 heads for the 1.3B model (24 x 128 is not 2048) and a width of 5140 for the 13B model
(40 x 128 is 5120). Appendix D's parameter counts settle the widths at 2048 and 5120; 16 heads follow from 2048 / 128.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One row of table 2.1.

    Attributes:
        num_hidden_layers: Decoder blocks.
        hidden_size: Width of the residual stream (d_model).
        num_attention_heads: Attention heads per block.
        head_dim: Width of one head; `num_attention_heads * head_dim == hidden_size`.
        batch_size_tokens: Full batch size, in tokens.
        learning_rate: Peak learning rate.
        num_parameters: Exact count with tied embeddings, 50,257 words and 2,048 positions.
        batch_ramp_tokens: Tokens over which the batch grows to its full size. The paper says "the first 4-12 billion
            tokens, depending on the model size"; the sizes between are our choice, by the full batch.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    head_dim: int
    batch_size_tokens: int
    learning_rate: float
    num_parameters: int
    batch_ramp_tokens: int


PRESETS: dict[str, Preset] = {
    "gpt3-125m": Preset(12, 768, 12, 64, 500_000, 6.0e-4, 125_226_240, 4_000_000_000),
    "gpt3-350m": Preset(24, 1024, 16, 64, 500_000, 3.0e-4, 355_871_744, 4_000_000_000),
    "gpt3-760m": Preset(24, 1536, 16, 96, 500_000, 2.5e-4, 760_300_032, 4_000_000_000),
    "gpt3-1.3b": Preset(24, 2048, 16, 128, 1_000_000, 2.0e-4, 1_315_723_264, 6_000_000_000),
    "gpt3-2.7b": Preset(32, 2560, 32, 80, 1_000_000, 1.6e-4, 2_651_553_280, 6_000_000_000),
    "gpt3-6.7b": Preset(32, 4096, 32, 128, 2_000_000, 1.2e-4, 6_658_404_352, 8_000_000_000),
    "gpt3-13b": Preset(40, 5120, 40, 128, 2_000_000, 1.0e-4, 12_853_386_240, 8_000_000_000),
    "gpt3-175b": Preset(96, 12288, 96, 128, 3_200_000, 0.6e-4, 174_604_259_328, 12_000_000_000),
}
