"""Each check fails for a mechanism that does what it is there to find."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from polyattn_core.spec import ConformanceCase, SideInput
from polyattn_registry import Registry
from polyattn_testing import check_mechanism, checks


@dataclass(frozen=True)
class Wrong:
    """A wrong mechanism: its class, what its spec says, how it is set up, what is complained of."""

    factory: str = "acme_plain:Plain"
    changes: Mapping[str, Any] = field(default_factory=dict)
    case: Mapping[str, Any] = field(default_factory=dict)
    complaint: str = ""


def computes(name: str, complaint: str = "", **changes: Any) -> Wrong:
    return Wrong(f"acme_wrong:{name}", changes, complaint=complaint)


def behaves(name: str, complaint: str = "", **changes: Any) -> Wrong:
    return Wrong(f"acme_rude:{name}", changes, complaint=complaint)


def takes_undeclared(**capabilities: Any) -> Wrong:
    return behaves("TakesEverything", "but it was accepted", capabilities=capabilities)


def configured(name: str, complaint: str = "") -> Wrong:
    return Wrong(changes={"config": f"acme_rude:{name}"}, complaint=complaint)


PLAIN_ERRORS = behaves("RaisesPlainErrors", "got ValueError")
GATE = SideInput(name="gate", shape="(..., heads, queries)", description="a gate")

CAUGHT: Mapping[str, tuple[Wrong, ...]] = {
    "check_spec_is_complete": (
        Wrong(changes={"formula": ""}, complaint="no formula"),
        Wrong(changes={"papers": ("Vaswani 2017",)}, complaint="neither an arXiv id nor a DOI"),
        Wrong(changes={"sharpness": "temperature"}, complaint="there is no option"),
        Wrong(changes={"leading": ("heads", "width")}, complaint="there is no option 'width'"),
        Wrong(changes={"capabilities": {"time": "linear"}}, complaint="capabilities.time"),
    ),
    "check_schema_is_described": (
        configured("WithoutBounds", "scale is a number without bounds"),
        configured("WithoutDescription", "scale has no description"),
    ),
    "check_schema_is_strict": (configured("IgnoresUnknownOptions", "it was accepted"),),
    "check_configuration_survives_json": (configured("LosesOption", "JSON changes"),),
    "check_created_by_its_names": (behaves("CallsItselfOther", "creates acme/other"),),
    "check_public_names": (
        Wrong("acme_names:Plain", complaint="no Missing, which is in __all__"),
        Wrong("acme_any_name:Plain", complaint="has any name"),
    ),
    "check_papers_are_in_the_docstring": (
        Wrong(changes={"papers": ("1706.03762", "2001.04451")}, complaint="not name 2001.04451"),
    ),
    "check_examples_of_the_docstring": (computes("ExampleFails", "Expected:"),),
    "check_unknown_option": (configured("IgnoresUnknownOptions", "it was accepted"),),
    "check_options_out_of_range": (configured("TakesAnyText", "scale='no such value'"),),
    "check_heads_that_do_not_divide": (configured("AnyHeads"),),
    "check_wrong_ranks": (PLAIN_ERRORS,),
    "check_sizes_that_do_not_fit": (PLAIN_ERRORS,),
    "check_wrong_dtypes": (PLAIN_ERRORS,),
    "check_empty_arrays": (PLAIN_ERRORS,),
    "check_masks_that_do_not_fit": (PLAIN_ERRORS,),
    "check_bias_that_does_not_fit": (PLAIN_ERRORS,),
    "check_unknown_argument": (PLAIN_ERRORS,),
    "check_missing_side_inputs": (
        Wrong(
            "acme_rude:DoesWithoutSideInput",
            {"capabilities": {"side_inputs": (GATE,)}},
            {"inputs": "acme_plain:gates"},
            "but it was accepted",
        ),
    ),
    "check_undeclared_dtypes_are_refused": (takes_undeclared(dtypes=("float64",)),),
    "check_agrees_with_reference_in_float64": (
        computes("SlightlyOff", "at ["),
        computes("ComputesInSingle"),
        Wrong("acme_wrong:IgnoresScale", case={"options": {"scale": 2.0}}),
    ),
    "check_agrees_with_reference_in_float32": (computes("SlightlyOff"),),
    "check_agrees_with_reference_in_float16": (computes("FarOff"),),
    "check_agrees_with_reference_in_bfloat16": (computes("FarOff"),),
    "check_leading_axes": (computes("FirstKeysForAll"),),
    "check_grouped_heads": (computes("HeadsInTurn"),),
    "check_grouped_heads_are_refused": (takes_undeclared(grouped=False),),
    "check_other_numbers_of_keys_are_refused": (takes_undeclared(cross=False),),
    "check_other_value_sizes_are_refused": (takes_undeclared(value_size=False),),
    "check_bias": (computes("IgnoresBias"),),
    "check_bias_is_refused": (takes_undeclared(bias=False),),
    "check_causal_option": (computes("IgnoresOwnMask"),),
    "check_causal_option_is_refused": (Wrong(changes={"capabilities": {"causal": False}}),),
    "check_model_level": (computes("MergesInReverse"),),
    "check_single_query": (computes("KeepsAxisOfSingleQuery"),),
    "check_large_scores": (computes("NoMaximum"),),
    "check_extremes_are_quiet": (computes("WarnsOfOverflow", "a warning"),),
    "check_every_kind_of_mask": (computes("IgnoresMask"),),
    "check_combined_masks": (computes("LosesNegation"),),
    "check_boolean_array_as_mask": (computes("InvertsArrays"),),
    "check_undeclared_masks_are_refused": (takes_undeclared(masks=("causal",)),),
    "check_empty_rows": (computes("UniformWhereNothingIsSeen", "are not 0"),),
    "check_empty_rows_have_no_gradient": (computes("UniformWhereNothingIsSeen"),),
    "check_hidden_keys_do_not_leak": (computes("MultipliesByZero", "got nan"),),
    "check_partly_hidden_keys_do_not_leak": (computes("MultipliesByZero", "got nan"),),
    "check_hidden_keys_do_not_leak_into_gradients": (computes("GradientMultipliesByZero"),),
    "check_batch_elements_are_independent": (computes("LooksAcrossBatch"),),
    "check_heads_are_independent": (computes("HeadsDiffer", capabilities={"parametric": False}),),
    "check_order_of_keys_does_not_matter": (computes("LooksAtPositions"),),
    "check_is_deterministic": (computes("Noisy"),),
    "check_number_of_threads_does_not_matter": (computes("ThreadsMatter"),),
    "check_inputs_are_not_written": (computes("WritesToItsInputs", "query after the call"),),
    "check_memory_layout_does_not_matter": (computes("AssumesContiguous"),),
    "check_calls_at_once": (computes("KeepsCallOnInstance"),),
    "check_undeclared_statistics_are_refused": (takes_undeclared(statistics=("weights",)),),
    "check_unknown_statistics": (behaves("IgnoresUnknownStatistics"),),
    "check_statistics_leave_the_output_alone": (computes("ObservedOutputDiffers"),),
    "check_statistics_have_their_shapes": (computes("ColumnMassByQuery", "column_mass: shape"),),
    "check_weights_sum_values_to_the_output": (computes("HalvedWeights"),),
    "check_weights_are_those_of_the_reference": (computes("HalvedWeights"),),
    "check_statistics_agree_with_weights": (computes("EntropyInBits", "entropy"),),
    "check_top_weights_are_the_largest": (computes("TopKeysOfTheOrder", "at their keys"),),
    "check_log_sum_exp": (computes("LogSumExpTooLarge"),),
    "check_log_sum_exp_follows_the_bias": (computes("LogSumExpIgnoresBias"),),
    "check_gradients_are_refused": (takes_undeclared(gradient=False),),
    "check_gradients_by_inputs": (
        computes("KeyGradientTooLarge", "gradient by key"),
        Wrong(
            "acme_wrong:GateGradientTooLarge",
            {
                "reference": "acme_plain:gated_reference",
                "capabilities": {"side_inputs": (GATE,), "statistics": ()},
            },
            {"inputs": "acme_plain:gates"},
            "gradient by gate",
        ),
    ),
    "check_gradients_under_masks": (computes("GradientForgetsMask"),),
    "check_gradient_by_bias": (computes("BiasGradientTooLarge"),),
    "check_gradients_by_parameters": (computes("NoParameterGradient", "gain"),),
    "check_gradients_of_defaulted_inputs": (computes("ForgetsSharedInputs"),),
    "check_gradients_in_every_dtype": (computes("WidensGradients", "it is float64"),),
    "check_pullback": (computes("PullbackOnlyOnce"),),
    "check_partial_results_are_refused": (takes_undeclared(partial=False),),
    "check_parts_merge_to_the_whole": (computes("PartsForgetTheirWeight"),),
    "check_merging_is_associative_and_commutative": (computes("PartsForgetTheirWeight"),),
    "check_parts_under_masks": (computes("PartsForgetTheirPlace"),),
    "check_parts_in_every_dtype": (computes("PartsStayWide", "float16 output is"),),
    "check_parts_that_do_not_fit": (computes("AcceptsAnyPart", "but it was accepted"),),
    "check_caches_are_refused": (takes_undeclared(partial=False),),
    "check_cached_tokens_are_those_of_one_call": (computes("CachedOutputDiffers", "from a cache"),),
    "check_cached_sequences_of_different_lengths": (computes("FirstCachedSequenceForAll"),),
    "check_cached_attention_under_masks": (computes("CachesForgetMasks"),),
    "check_cached_attention_with_a_bias": (computes("CachesForgetBiases"),),
    "check_caches_that_do_not_fit": (computes("TakesAnyCache", "but it was accepted"),),
    "check_dropout_is_refused": (Wrong(changes={"capabilities": {"dropout": False}}),),
    "check_dropout_acts_in_training_only": (computes("AlwaysDrops"),),
    "check_dropout_follows_the_seed": (computes("IgnoresSeed"),),
    "check_dropout_is_unbiased": (computes("DoesNotRescale", "mean output"),),
    "check_dropout_needs_a_seed": (computes("InventsSeed", "rng=None"),),
    "check_gradients_with_dropout": (computes("GradientForgetsDropout"),),
    "check_initialised_by_a_seed": (behaves("StartsAnywhere"),),
    "check_parameters_matter": (behaves("UnusedParameter", "unused"),),
    "check_parameters_are_read_only": (behaves("WritableParameters", "can be written"),),
    "check_parameters_are_set_all_or_none": (behaves("SetsOneByOne", "after an update"),),
    "check_parameters_are_saved_and_loaded": (behaves("SavesRounded", "after saving"),),
    "check_pickling": (behaves("Unpicklable"),),
    "check_copying": (behaves("CopiesShallowly"),),
    "check_repr": (behaves("Anonymous"),),
}

OF_PLUGINS = {
    "check_manifest_is_light",
    "check_manifest_names_what_exists",
    "check_readme_names_it",
    "check_examples_of_the_readme",
    "check_presets",
}
"""Those whose wrong mechanisms are in a plugin: see test_runner.py and test_wrong_plugins.py."""
EVERY = [(check, wrong) for check, several in CAUGHT.items() for wrong in several]
IDS = [f"{check}-{i}" for check, several in CAUGHT.items() for i in range(len(several))]


@pytest.mark.parametrize(("check", "wrong"), EVERY, ids=IDS)
def test_wrong_mechanism_is_caught(registry: Registry, check: str, wrong: Wrong) -> None:
    from acme_plain import spec

    registry.register(spec("wrong", wrong.factory, **wrong.changes))
    case = ConformanceCase(mechanism="acme/wrong", **wrong.case)
    (result,) = check_mechanism("acme/wrong", checks=check, cases=[case], registry=registry)
    assert result.status == "failed", f"{check} did not notice"
    assert wrong.complaint in result.message
    # Not for a reason of its own.
    assert not result.message.startswith(("AttributeError: 'super'", "NameError", "TypeError"))


def test_every_check_is_known_to_fail() -> None:
    found = {
        name
        for module in pkgutil.iter_modules(checks.__path__, f"{checks.__name__}.")
        for name in vars(importlib.import_module(module.name))
        if name.startswith("check_")
    }
    found -= OF_PLUGINS
    dtypes = {name for name in CAUGHT if name.startswith("check_agrees_with_reference_in_")}
    assert found | dtypes == set(CAUGHT)
    assert len(dtypes) == 4
