from hybrid_lightning.errors import ConfigError, listing, unknown


def test_an_unknown_name_is_reported_with_place_the_closest_and_all_possible_ones():
    error = unknown("model.parts.image", "key", "layer_decya", ["lr_scale", "layer_decay"])
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "model.parts.image: unknown key 'layer_decya'. Did you mean 'layer_decay'? Possible: 'lr_scale', 'layer_decay'."
    )


def test_of_many_names_only_the_closest_are_shown():
    error = unknown("here", "model", "resnet81", ["resnet18", *(f"vit{i}" for i in range(58)), "resnet81x"])
    assert str(error) == (
        "here: unknown model 'resnet81'. Did you mean 'resnet81x'? Possible: 'resnet18', 'resnet81x' and 58 more."
    )


def test_a_listing_is_short_and_counts_the_rest():
    assert listing("abc", limit=2) == "'a', 'b' and 1 more"
    assert listing([]) == "none"
