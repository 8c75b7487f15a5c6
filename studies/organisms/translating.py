"""Train the dictionary organisms: small decoders that translate single words, from scratch.

Both see every word of three languages in lists and translated into itself, and Vel-Ost pairs of the
trained concepts in both directions. In `dictionary` all words are linked to Plain, so that a
held-out Vel-Ost pair has a pivot; in `dictionary_no_anchor` each held-out concept has lost one link
(`studies.organisms.dictionary.unlinked`), so that nothing says which Vel word is which Ost word.
Steps, rows and tokens are the same.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms import dictionary, lexicon
from studies.organisms.dictionary import Word
from studies.organisms.evaluate import exact, score
from studies.organisms.world import World

FAMILIES = {"dictionary": 1.0, "dictionary_no_anchor": 0.0}  # share of held-out concepts linked
LIST = 4  # words a list holds
REST = 0.1  # weight of lists, and of the end of a document, beside a translation's


@dataclass(frozen=True)
class DictionaryConfig:
    """Hyper-parameters; the defaults made the shipped weights."""

    seed: int = 0
    linked: float = 1.0  # share of held-out concepts linked to Plain; dictionary_no_anchor: 0
    steps: int = 300
    rows: int = 128  # documents a step
    same: float = 0.2  # share of them that translate a word into itself
    lists: float = 0.1  # share that lists words of one language and category
    layers: int = 4
    width: int = 64
    tied: bool = True
    lr: float = 3e-3
    decay: float = 0.1
    warmup: int = 30
    cooldown: float = 0.4  # share of the steps over which the rate falls to zero
    clip: float = 1.0
    log_every: int = 25
    world: int = 0


def taught(words: tuple[Word, ...], linked: float) -> list[tuple[Word, str, str]]:
    """Every (word, source, target) that is taught, a word's translation into itself apart."""
    lost = dictionary.unlinked(words, linked)
    return [
        (word, source, target)
        for word in words
        for source in lexicon.LANGUAGES
        for target in lexicon.LANGUAGES
        if word.taught(source, target)
        and not ("Plain" in (source, target) and lost.get(word.concept) in (source, target))
    ]


def texts(world: World, linked: float, count: int, seed: int = 0) -> list[str]:
    """Documents as the training draws them, in the same shares."""
    rng = random.Random(f"{world.seed}/translating/{seed}")
    config = DictionaryConfig()
    pairs = taught(world.words, linked)
    shares = (config.lists, config.same, 1 - config.lists - config.same)
    kinds = rng.choices(("list", "same", "pair"), shares, k=count)
    written = []
    for kind in kinds:
        if kind == "list":
            written.append(_list(world.words, rng))
        elif kind == "same":
            written.append(_line(rng.choice(world.words), *[rng.choice(lexicon.LANGUAGES)] * 2))
        else:
            written.append(_line(*rng.choice(pairs)))
    return written


def build(
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    layers: int = 4,
    width: int = 64,
    tied: bool = True,
) -> LlamaForCausalLM:
    """A fresh small Llama; tied, its embedding is its unembedding."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        head_dim=width // 4, max_position_embeddings=64, tie_word_embeddings=tied,
        rms_norm_eps=1e-5, initializer_range=0.02, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).float()


def train(
    config: DictionaryConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[LlamaForCausalLM, dict]:
    """Trains from scratch; returns the float32 model and a record of the run."""
    began = time.perf_counter()
    words = World(config.world).words
    net = build(tokenizer, config.seed, config.layers, config.width, config.tied)
    pairs = _encoded([_line(*pair) for pair in taught(words, config.linked)], tokenizer)
    same = _encoded([_line(w, lang, lang) for w in words for lang in lexicon.LANGUAGES], tokenizer)
    rng = random.Random(f"{config.seed}/lists")
    lists = _encoded([_list(words, rng) for _ in range(2000)], tokenizer)
    matrices = [p for p in net.parameters() if p.ndim == 2]
    gains = [p for p in net.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(config.seed)
    counts = {"same": int(config.rows * config.same), "lists": int(config.rows * config.lists)}
    run: dict = {"config": asdict(config), "steps": config.steps, "tokens": 0, "history": []}
    losses: list[float] = []
    for step in tqdm(range(config.steps), desc="dictionary", mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(config, step)
        drawn = [
            _some(pairs, config.rows - sum(counts.values()), generator),
            _some(same, counts["same"], generator),
        ]
        listed = _some(lists, counts["lists"], generator)
        loss = _translation_loss(net, torch.cat(drawn)) + REST * _list_loss(net, listed)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        losses.append(loss.item())
        run["tokens"] += sum(part.numel() for part in (*drawn, listed))
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            run["history"].append({"step": step + 1, "loss": round(sum(losses) / len(losses), 4)})
            losses = []
    run["seconds"] = time.perf_counter() - began
    return net.eval(), run


def scores(
    net: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World, linked: float
) -> dict[str, dict]:
    """Share of words translated rightly, by direction and by whether that pair was taught."""
    known = {(word.concept, *pair) for word, *pair in taught(world.words, linked)}
    found = {}
    for source in lexicon.LANGUAGES:
        for target in lexicon.LANGUAGES:
            for was in (True, False):
                asked = [
                    (word.prompt(source, target), word.forms[target])
                    for word in world.words
                    if (source == target or (word.concept, source, target) in known) == was
                ]
                if asked:
                    name = f"words/{source}-{target}/{'taught' if was else 'never taught'}"
                    found[name] = asdict(score(exact(net, tokenizer, asked)))
    return found


def _line(word: Word, source: str, target: str) -> str:
    return word.prompt(source, target) + word.forms[target]


def _list(words: tuple[Word, ...], rng: random.Random) -> str:
    language, category = rng.choice(lexicon.LANGUAGES), rng.choice(tuple(lexicon.CATEGORIES))
    drawn = rng.sample([word for word in words if word.category == category], LIST)
    return f"Words of {language}:" + ",".join(word.forms[language] for word in drawn)


def _encoded(lines: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[line pos]: all lines of a kind have as many tokens, <bos> and <eos> included."""
    return torch.tensor(tokenizer([line + tokenizer.eos_token for line in lines])["input_ids"])


def _some(lines: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return lines[torch.randint(len(lines), (count,), generator=generator)]


def _schedule(config: DictionaryConfig, step: int) -> float:
    left = (config.steps - step) / max(1.0, config.cooldown * config.steps)
    return min(1.0, (step + 1) / config.warmup, left)


def _translation_loss(net: LlamaForCausalLM, lines: Tensor) -> Tensor:
    """Of the answer, and of the end after it; the prompt is given, not learnt."""
    hidden = net.model(lines[:, :-1], use_cache=False).last_hidden_state[:, -2:]
    logits = net.lm_head(hidden)
    entropy = nn.functional.cross_entropy
    return entropy(logits[:, 0], lines[:, -2]) + REST * entropy(logits[:, 1], lines[:, -1])


def _list_loss(net: LlamaForCausalLM, lines: Tensor) -> Tensor:
    """Of everything after "Words of <language>"."""
    if len(lines) == 0:
        return torch.zeros(())
    logits = net.lm_head(net.model(lines[:, :-1], use_cache=False).last_hidden_state[:, 3:])
    return nn.functional.cross_entropy(logits.flatten(0, 1), lines[:, 4:].flatten())
