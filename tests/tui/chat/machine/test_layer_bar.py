"""Layers as exact text."""

from tui.chat.machine.layer_bar import layer_signs, slots_text, wrap_layers


def test_every_layer_has_a_sign():
    signs = layer_signs(10, resident=(0, 3, 6, 9), in_slots=(4, 5), current=4)
    assert signs == "█░░█◆▒█░░█"
    assert layer_signs(3, resident=(), in_slots=(), current=None) == "░░░"


def test_a_resident_layer_that_computes_is_the_current_one():
    assert layer_signs(3, resident=(1,), in_slots=(), current=1) == "░◆░"


def test_rows_have_nearly_one_length():
    assert wrap_layers("░" * 28, 36) == ("░" * 28,)
    assert [len(row) for row in wrap_layers("░" * 80, 36)] == [27, 27, 26]


def test_very_many_layers_share_signs():
    rows = wrap_layers("░" * 50 + "◆▒" + "░" * 8 + "█" * 52, 10)
    assert rows == ("░" * 10, "░" * 6 + "◆▒░░", "█" * 10, "█" * 8)


def test_no_room_and_no_layers_are_no_rows():
    assert wrap_layers("░", 0) == wrap_layers("", 5) == ()


def test_slots_name_their_layers():
    assert slots_text((8, 19), 3) == "[ 8] [19] [  ]"
    assert slots_text((), 2) == "[  ] [  ]"
