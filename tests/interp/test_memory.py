"""Nothing here keeps a model alive after its user let it go."""

import gc
import weakref

import interp
from tests.architectures import build


def test_a_model_that_was_read_and_edited_can_be_collected() -> None:
    module = build("llama")
    model = interp.Model(module)
    interp.capture(model, [[3, 4, 5]], ["resid_post.*", "pattern.1"])
    interp.logit_lens(model, [[3, 4, 5]])
    with interp.hooked(model, {"z.0": lambda z, _site: z * 2}):
        module(interp.Model(module).batch([[3, 4]]).input_ids)
    recording = interp.replay(model, [[3, 4, 5]])
    alive = weakref.ref(module)
    del module, model, recording
    gc.collect()
    assert alive() is None
