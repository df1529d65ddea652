"""config.json of a Step1 model as a transformers configuration class.

Importing this module imports transformers, and transformers 5 imports torchaudio, which is broken beside a CPU
build of torch unless the compatibility stub stands first: hence the call between the imports. The decode loop and
the network import neither.
"""

from __future__ import annotations

from typing import Any

from stepaudio.torchaudio_compat import install

install()

from transformers import PreTrainedConfig  # noqa: E402

from stepaudio.llm.network import Dimensions  # noqa: E402

MODEL_TYPE = "step1"


class Step1Config(PreTrainedConfig):
    """The keys of config.json; the defaults are those of the released 3B model.

    ``num_attention_groups`` is the number of key/value heads. Embeddings are never tied, whatever the file says or
    fails to say: transformers ties by default when the key is missing, and the model then speaks garbage.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 74752
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 48
    num_attention_groups: int = 4
    max_seq_len: int = 32768
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = 1
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.tie_word_embeddings = False
        super().__post_init__(**kwargs)

    @property
    def dimensions(self) -> Dimensions:
        """Return the sizes that the network is built from."""
        return Dimensions(
            vocabulary=self.vocab_size,
            hidden=self.hidden_size,
            intermediate=self.intermediate_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            groups=self.num_attention_groups,
            norm_eps=self.rms_norm_eps,
            max_length=self.max_seq_len,
        )
