"""Curves of one picture are told apart, and a stage has one colour in its plan's picture and in its report's."""

from megatron_growth.planner import picture
from megatron_growth.report import plots
from megatron_growth.strokes import COLOURS, DASHES, GREYS, baseline_stroke, stroke


def test_no_two_curves_are_alike_until_all_dashes_are_used():
    curves = [stroke(number) for number in range(len(COLOURS) * len(DASHES))]
    baselines = [baseline_stroke(number) for number in range(len(GREYS) * (len(DASHES) - 1))]
    assert len({str(one) for one in curves + baselines}) == len(curves) + len(baselines)
    assert all(one["linestyle"] != "-" for one in baselines)


def test_plans_and_reports_draw_with_the_same_strokes():
    assert picture.stroke is plots.stroke is stroke
    assert picture.baseline_stroke is plots.baseline_stroke is baseline_stroke
    assert plots.curve_style(13) == {**stroke(13), "marker": plots.MARKS[1]}
