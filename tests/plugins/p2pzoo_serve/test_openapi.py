"""The description of the routes is true."""

import jsonschema
import pytest
from p2pzoo_serve.app import read_openapi
from p2pzoo_serve.interface import MAX_SEED, Options
from starlette.routing import Route

DOCUMENT = read_openapi()


def test_it_is_valid_openapi():
    validator = pytest.importorskip("openapi_spec_validator", reason="checked by structure below")
    validator.validate(DOCUMENT)


def test_it_describes_every_route_with_its_methods(serve):
    routes = {
        route.path: route.methods - {"HEAD"}
        for route in serve().app.app.routes
        if isinstance(route, Route) and route.path != "/" and not route.path.startswith("/page.")
    }
    assert {path: {method.upper() for method in item} for path, item in DOCUMENT["paths"].items()} == routes


def test_every_reference_leads_somewhere_and_every_operation_has_a_name():
    def visit(value):
        if isinstance(value, dict):
            if "$ref" in value:
                at = DOCUMENT
                for key in value["$ref"].removeprefix("#/").split("/"):
                    at = at[key]
            for each in value.values():
                visit(each)
        elif isinstance(value, list):
            for each in value:
                visit(each)

    visit(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert all(response["description"] for response in operation["responses"].values())


def test_the_options_are_those_that_are_parsed():
    parameters = DOCUMENT["components"]["parameters"]
    assert set(parameters) == set(Options.__dataclass_fields__)
    assert parameters["seed"]["schema"]["maximum"] == MAX_SEED


def check(answer, path, method):
    """The answer has a status, a media type and a document that the description names."""
    response = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = response["content"][kind]["schema"]
    if kind == "application/json":
        jsonschema.validate(answer.json(), {**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("name", ["random", "calibrated"])
def test_answers_are_as_described(serve, image, name):
    client = serve(name)
    for path in ("/model", "/health", "/openapi.json"):
        check(client.get(path), path, "get")
    png = {"Content-Type": "image/png"}
    query = "?samples=2" if name == "random" else "?interval=0.8"
    check(client.post("/translate", content=image(), headers=png), "/translate", "post")
    check(client.post(f"/translate{query}", content=image(), headers=png), "/translate", "post")
    check(client.post("/batch", files={"image": ("a.png", image())}), "/batch", "post")
    for content, headers, query in (
        (b"x", png, ""),
        (b"x", {}, ""),
        (b"x", png, "?seed=x"),
        (bytes(21_000_000), png, ""),
    ):
        check(client.post(f"/translate{query}", content=content, headers=headers), "/translate", "post")
