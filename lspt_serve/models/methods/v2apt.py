"""Visual Variational Autoencoder Prompt Tuning, V2APT (Xiao et al. 2025, arXiv 2503.17650).

Beside the learned prompts of VPT-deep, every block sees prompts of the image's own: an encoder
turns the embedded patches into the normal distribution of a latent, a decoder turns the latent into
prompts. Of the shape of both we know nothing; here each is two linear maps around a GELU (ours).

B batch, N patches, V VAE prompts, D embed_dim, Z latent_dim.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lspt_serve.errors import MethodError
from lspt_serve.models.methods.base import Shape, State
from lspt_serve.models.methods.vpt import VPTDeep, VPTSettings
from lspt_serve.models.rows import Affine, Rows

__all__ = ["V2APT", "PromptVAE", "V2APTSettings", "kl_to_standard_normal", "sample_latent"]


@dataclass(frozen=True, kw_only=True)
class V2APTSettings(VPTSettings):
    """`num_prompts` are learned, `num_vae_prompts` the image's own; the defaults are ours.

    Args:
        latent_dim: width of the latent, and of the hidden layers around it (ours).
        kl_weight: of the KL term in the loss.
    """

    num_prompts: int = 12  # 16 with the image's own
    num_vae_prompts: int = 4
    latent_dim: int = 16
    kl_weight: float = 1e-3

    training_only = frozenset({"prompt_dropout", "kl_weight"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_vae_prompts", "latent_dim"):
            if getattr(self, name) < 1:
                raise MethodError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.kl_weight < math.inf:
            raise MethodError(f"kl_weight must be finite and not negative, got {self.kl_weight}")


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over Z, averaged over B; B x Z to a scalar.

    (mean^2 + exp(log_variance) - log_variance - 1) / 2, in fp32.
    """
    mean, log_variance = mean.float(), log_variance.float()
    divergence = (mean.square() + log_variance.exp() - log_variance - 1) / 2
    return divergence.sum(dim=-1).mean()


def sample_latent(mean: Tensor, log_variance: Tensor) -> Tensor:
    """mean + sigma * noise, the reparameterised sample; B x Z."""
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


class PromptVAE(nn.Module):
    """Encoder D -> Z -> mean over patches -> 2 Z, decoder Z -> Z -> V D."""

    def __init__(self, embed_dim: int, latent_dim: int, num_vae_prompts: int) -> None:
        super().__init__()
        self.shape = (num_vae_prompts, embed_dim)
        self.patch_encoder = Affine(embed_dim, latent_dim)
        self.encoder = Affine(latent_dim, 2 * latent_dim)
        self.decoder = nn.Sequential(
            Affine(latent_dim, latent_dim),
            nn.GELU(),
            Affine(latent_dim, num_vae_prompts * embed_dim),
        )

    def encode(self, patches: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Embedded patches (B x N x D) to mean and log-variance of the latent, each B x Z."""
        n = patches.shape[1]
        hidden = rows.scatter(nn.functional.gelu(self.patch_encoder(rows.gather(patches))), n)
        both = self.encoder(rows.gather(hidden.mean(dim=1, keepdim=True)))
        mean, log_variance = rows.scatter(both, 1).squeeze(1).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, latent: Tensor, rows: Rows) -> Tensor:
        """A latent (B x Z) to prompts (B x V x D)."""
        prompts: Tensor = self.decoder(rows.gather(latent.unsqueeze(1)))
        unflattened: Tensor = rows.scatter(prompts, 1).squeeze(1).unflatten(-1, self.shape)
        return unflattened


class V2APT(VPTDeep):
    """[x_l, _, X_l] = B_l([x_{l-1}, Decoder(z), P_{l-1}, X_{l-1}]), z ~ Encoder(X_0).

    The same prompts of the image enter every block (our reading: one encoding of X_0). Outside
    training z is its mean, so that answers are repeatable (ours). Prompt dropout falls on all.
    """

    name = "v2apt"
    settings_type = V2APTSettings
    settings: V2APTSettings

    def __init__(self, settings: V2APTSettings, vit: Shape) -> None:
        super().__init__(settings, vit)
        self.vae = PromptVAE(vit.embed_dim, settings.latent_dim, settings.num_vae_prompts)
        self.num_image_prompts = settings.num_vae_prompts
        self._kl: Tensor | None = None

    def start(self, patches: Tensor, rows: Rows) -> tuple[Tensor, State]:
        mean, log_variance = self.vae.encode(patches, rows)
        if self.training:
            self._kl = kl_to_standard_normal(mean, log_variance)
        latent = sample_latent(mean, log_variance) if self.training else mean
        own = self.dropout(self.vae.decode(latent, rows))  # B x V x D
        prompts, _ = super().start(patches, rows)
        return torch.cat([own, prompts], dim=1), (own,)

    def advance(
        self, block: int, entered: Tensor, left: Tensor, patches: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, State]:
        prompts, _ = super().advance(block, entered, left, patches, state, rows)
        return torch.cat([*state, prompts], dim=1), state

    def regularisation(self) -> Tensor | None:
        return None if self._kl is None else self.settings.kl_weight * self._kl
