"""Preferences: the losses of others, one encode for each source, and a margin that grows."""

import json
import random

import pytest
import tiny
import torch
from runs import WORDS, scratch_recipe, write_examples

import xattn
from xattn.errors import UsageError
from xattn.tuning import journal
from xattn.tuning.batches import memories_of, prepare
from xattn.tuning.dpo import Pair, Preferences, preference_loss, read_preferences
from xattn.tuning.examples import Example
from xattn.tuning.objectives import Lost
from xattn.tuning.recipe import Preference, checked
from xattn.tuning.teacher import Teacher
from xattn.tuning.train import train
from xattn.tuning.vocabulary import make_tokenizer


def write_preferences(path, count, seed):
    """The right way round is better than the wrong one."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 6))
        lines.append(
            json.dumps(
                {
                    "source": " ".join(words),
                    "chosen": " ".join(reversed(words)),
                    "rejected": " ".join(words),
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that learnt a little, and preferences for it."""
    directory = tmp_path_factory.mktemp("dpo")
    write_examples(directory / "train.jsonl", 60, 1)
    write_examples(directory / "valid.jsonl", 20, 2)
    write_preferences(directory / "pairs.jsonl", 40, 3)
    write_preferences(directory / "held-out.jsonl", 15, 4)
    train(scratch_recipe(directory / "base", directory, steps=30))
    return directory


def recipe(base, directory, preference=None, **training):
    given = {
        "directory": str(directory),
        "model": {"path": str(base / "base" / "best")},
        "data": {"train": str(base / "pairs.jsonl"), "validation": str(base / "held-out.jsonl")},
        "training": {"method": "decoder", "batch_tokens": 400, "steps": 20, "warmup": 2} | training,
        "preference": preference or {},
    }
    return checked(given)


def test_the_margin_grows_and_each_source_is_encoded_once(base, tmp_path):
    outcome = train(recipe(base, tmp_path, learning_rate=3e-3, evaluate_every=5))
    rows = journal.read(tmp_path / "log.csv")
    assert rows[0].loss == pytest.approx(0.6931, abs=1e-3)  # the policy is the reference
    assert rows[0].seen["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[-1].seen["margin"] > rows[0].seen["margin"] + 0.1
    assert rows[-1].seen["accuracy"] > max(0.7, rows[0].seen["accuracy"])
    files = [base / name for name in ("pairs.jsonl", "held-out.jsonl")]
    sources = {json.loads(line)["source"] for f in files for line in f.read_text().splitlines()}
    assert outcome.encoder_passes == len(sources)
    assert (tmp_path / "reference-train" / "logprobs.safetensors").is_file()


def test_a_run_goes_on_with_the_reference_that_it_began_with(base, tmp_path):
    whole = train(recipe(base, tmp_path / "whole", steps=8, save_every=4))
    train(recipe(base, tmp_path / "parts", steps=4, save_every=4, schedule="constant"))
    first = journal.read(tmp_path / "parts" / "log.csv")
    train(recipe(base, tmp_path / "parts", steps=8, save_every=4, schedule="constant"))
    train(recipe(base, tmp_path / "once", steps=8, save_every=4, schedule="constant"))
    parts, once = (journal.read(tmp_path / name / "log.csv") for name in ("parts", "once"))
    assert parts[:4] == first
    assert [(r.loss, dict(r.seen)) for r in parts] == [(r.loss, dict(r.seen)) for r in once]
    assert whole.steps == 8


def loss(preference, chosen=(-4.0, -7.5), rejected=(-6.0, -3.0), lengths=((3, 5), (2, 6))):
    return preference_loss(
        torch.tensor(chosen), torch.tensor(rejected), torch.tensor(lengths), preference
    )


def test_losses_are_their_papers():
    deltas = torch.tensor([2.0, -4.5])
    torch.testing.assert_close(loss(Preference()), -torch.sigmoid(0.1 * deltas).log())
    smooth = loss(Preference(label_smoothing=0.2, beta=0.5))
    wanted = -0.8 * torch.sigmoid(0.5 * deltas).log() - 0.2 * torch.sigmoid(-0.5 * deltas).log()
    torch.testing.assert_close(smooth, wanted)
    torch.testing.assert_close(loss(Preference(loss="hinge", beta=1.0)), torch.tensor([0.0, 5.5]))
    means = torch.tensor([-4 / 3 + 6 / 5, -7.5 / 2 + 3 / 6])
    torch.testing.assert_close(loss(Preference(loss="ipo")), (means - 5.0) ** 2)
    normal = loss(Preference(length_normalised=True))
    torch.testing.assert_close(normal, -torch.sigmoid(0.1 * means).log())


@pytest.mark.filterwarnings("ignore")  # of TRL's own dependencies
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_the_loss_is_trls(name, tmp_path):
    """TRL's own trainer, a policy and another reference, over the same pairs."""
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    (tmp_path / "tokens").mkdir()
    make_tokenizer([" ".join(WORDS)], 90, tmp_path / "tokens")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokens" / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    policy, reference = (
        tiny.make("llama", tmp_path / which, seed=seed, eos_token_id=2)
        for which, seed in (("policy", 1), ("reference", 2))
    )
    scale_apart(reference)
    pairs = [
        {"prompt": "one two", "chosen": " three four", "rejected": " nine"},
        {"prompt": "red", "chosen": " blue green blue", "rejected": " red red"},
    ]
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            loss_type=[name],
            beta=0.3,
            per_device_eval_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs),
        processing_class=fast,
    )
    [inputs] = trainer.get_eval_dataloader()
    wanted = trainer.evaluate()["eval_loss"]
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    learnt = inputs["completion_mask"].sum(dim=1).tolist()
    items = [item_of(row, count) for row, count in zip(rows, learnt, strict=True)]
    ours, theirs = (
        Teacher(load(tmp_path / n, p)) for n, p in (("policy", policy), ("reference", reference))
    )
    objective = Preferences(Preference(loss=name, beta=0.3))
    both = [Pair(chosen=items[n], rejected=items[n + 2]) for n in range(2)]
    both = list(objective.with_reference(theirs, both, 10_000, nothing))
    with torch.no_grad():
        found: Lost = objective.loss(ours, both, nothing)
    assert float(found.loss) / 2 == pytest.approx(wanted, abs=1e-5)


def scale_apart(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)


def load(directory, theirs):
    theirs.save_pretrained(directory)
    return xattn.load(directory).network


def item_of(tokens, learnt):
    from xattn.tuning.batches import Item

    return Item(sources=(), tokens=tuple(tokens[:-1]), learnt=learnt, end=tokens[-1])


def nothing(batch):
    return [[] for _ in batch.items]


def test_both_answers_are_read_from_one_memory(base):
    model = xattn.load(base / "base" / "best")
    pairs = Preferences(Preference()).items(
        model, read_preferences("pairs.jsonl", base), recipe(base, base / "x").data
    )
    before = model.counters.encoder_passes

    def remember(batch):
        return memories_of(model, batch, frozen=True)

    with torch.no_grad():
        found = Preferences(Preference()).logprobs(Teacher(model.network), pairs[:4], remember)
    assert model.counters.encoder_passes == before + 4
    for n, pair in enumerate(pairs[:4]):
        for row, item in enumerate((pair.chosen, pair.rejected)):
            memory = model.encode_prepared(item.sources)[0]
            state = model.network.start([[memory]])
            logits = model.network.step_all(torch.tensor([item.tokens]), state)[0]
            said = [*item.tokens[1:], item.end]
            each = logits.log_softmax(-1)[range(len(said)), said]
            assert float(found[row, n]) == pytest.approx(
                float(each[-item.learnt :].sum()), abs=1e-4
            )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"source": "a", "chosen": "b"}', "line 2: `rejected` must be a text, but is None"),
        ('{"source": "a", "chosen": "b", "rejected": 3}', "`rejected` must be a text"),
        ('{"source": "a", "chosen": "b", "rejected": "c", "score": 1}', "but one is 'score'"),
        ('{"chosen": "b", "rejected": "c"}', "one of `source` and `sources`"),
    ],
)
def test_lines_that_are_no_preferences(line, said, tmp_path):
    good = '{"source": "a", "chosen": "b", "rejected": "c"}'
    (tmp_path / "pairs.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UsageError, match=said):
        read_preferences("pairs.jsonl", tmp_path)


def test_examples_are_no_preferences(base, tmp_path):
    given = recipe(base, tmp_path).model_dump(mode="json")
    given["data"]["train"] = str(base / "train.jsonl")
    with pytest.raises(UsageError, match="fields are source, sources, prompt, chosen, rejected"):
        train(checked(given))
    model = xattn.load(base / "base" / "best")
    assert prepare(model, [Example(sources=("one",), target="two")], most_source=9, most_target=9)
