"""Step1 as a transformers model class, so that its Auto classes and quantisers can load it.

Importing this module imports transformers (see llm/configuration.py). Nothing is registered until register().
"""

from __future__ import annotations

from torch import Tensor, nn

from stepaudio.llm.configuration import MODEL_TYPE, Step1Config  # before transformers: it prepares torchaudio
from stepaudio.llm.network import Decoder

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel  # isort: skip
from transformers.modeling_outputs import CausalLMOutput  # isort: skip

_INIT_STD = 0.02


class Step1ForCausalLM(PreTrainedModel):
    """The decoder and a head of its own: embeddings are never tied.

    Generation is llm/generate.py's affair; transformers' generate() is not supported.
    """

    config_class = Step1Config
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 - transformers declares it as a list

    def __init__(self, config: Step1Config) -> None:
        super().__init__(config)
        self.model = Decoder(config.dimensions)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> CausalLMOutput:
        """Return logits (B, T, vocabulary) of every position of input_ids int64 (B, T).

        Padding belongs on the right, where nothing before it can see it. output_hidden_states adds the input of
        every layer and, last, the state after the final norm, each (B, T, hidden).
        """
        inputs: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.model(input_ids, inputs=inputs)
        states = None if inputs is None else (*inputs, hidden)
        return CausalLMOutput(logits=self.lm_head(hidden), hidden_states=states)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_INIT_STD)


def register() -> None:
    """Make transformers' Auto classes know "step1", so that no remote code is needed; safe to call again."""
    AutoConfig.register(MODEL_TYPE, Step1Config, exist_ok=True)
    AutoModelForCausalLM.register(Step1Config, Step1ForCausalLM, exist_ok=True)
