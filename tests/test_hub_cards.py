"""What the Hub of the tests says about the front matter of a card, as the real client passes it on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from hub_cards import check_card
from hub_server import HubServer
from huggingface_hub import HfApi


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def me(hub):
    return HfApi(endpoint=hub.url, token="hf_me")


MODEL_INDEX = "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: D}\n"


@pytest.mark.parametrize(
    "card, problem",
    [
        ("license: mit-ish", '"license" must be one of [apache-2.0'),
        ("license: other", '"license_name" is required'),
        ("tags: gan", '"tags" must be an array'),
        ("tags: [1]", '"tags[0]" must be a string'),
        ("datasets: [a b]", '"datasets" with value "a b" is not valid'),
        ("language: Englisch", '"language" with value "Englisch"'),
        ("license: [mit", "invalid yaml"),
        ("- mit", '"metadata" must be of type object'),
        ("model-index: 3", '"model-index" must be an array'),
        (MODEL_INDEX, '"model-index[0].results[0].metrics" is required'),
        (
            MODEL_INDEX + "    metrics: [{type: fid}]",
            '"model-index[0].results[0].metrics[0].value" is required',
        ),
    ],
)
def test_errors(me, card, problem):
    with pytest.raises(ValueError) as caught:
        me._validate_yaml(f"---\n{card}\n---\n")
    assert f"- {problem}" in str(caught.value)


def test_the_rest(hub, me):
    good = (
        MODEL_INDEX
        + "    metrics: [{type: fid, value: 2.05}]\nlicense: other\nlicense_name: x\nlicense_link: y"
    )
    assert check_card(f"---\n{good}\nbase_model: org/m\nlanguage: en\n---\ntext") == ([], [])
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        me._validate_yaml("# No front matter")
    with pytest.warns(UserWarning, match='pipeline tag "painting" is not in the official list'):
        me._validate_yaml("---\npipeline_tag: painting\n---\n")
    me.create_repo("org/model")
    card = {"path": "README.md", "content": "LS0tCmxpY2Vuc2U6IHgKLS0tCg==", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": card}]
    body = "\n".join(map(json.dumps, lines)).encode()
    url = f"{hub.url}/api/models/org/model/commit/main"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(
            urllib.request.Request(url, body, {"Authorization": "Bearer hf_me"}), timeout=5
        )
