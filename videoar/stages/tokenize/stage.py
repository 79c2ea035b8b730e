"""Clips to tokens: latents as a tokenizer encodes them, and the bits that follow from them."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from videoar.contracts.names import CLIPS, MODELS, TOKENS
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Port, StageConfig


class TokenizeConfig(StageConfig):
    """Options of `tokenize`."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips that are encoded together: memory against speed. It counts for the fingerprint, because
    convolutions of other batch sizes may round the last bit differently."""
    min_psnr_db: float = Field(default=0.0, ge=0)
    """Minimum mean PSNR in dB of the round trip of the first clips of each shape in a worker. Below
    it no tokens are written. It counts for the fingerprint, because tokens that passed a lower
    gate have not passed this one: another value encodes again."""


class TokenizeStage(MapStage[TokenizeConfig]):
    """One file of clips to a file of tokens for each shape among them."""

    name = "tokenize"
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS),
        "tokenizer": Port(MODELS),
    }
    produces = TOKENS
    config_type = TokenizeConfig
    primary = "clips"
    overlap = 2  # one shard computes while the other reads or writes

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the tokenizer."""
        from videoar.stages.tokenize.worker import TokenizeWorker

        return TokenizeWorker(
            inputs["tokenizer"],
            context,
            self.config.resources.cpus,
            batch_clips=self.config.batch_clips,
            min_psnr_db=self.config.min_psnr_db,
        )
