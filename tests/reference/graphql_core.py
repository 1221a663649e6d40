"""Compares the server with graphql-core, the reference implementation of GraphQL in Python.

usage: graphql_core.py URL OTHER_URL FIRST_SEED COUNT

URL answers generated documents. The reference executes the same documents over the same schema; each field at the
root it asks of OTHER_URL, a server with the same content, in the plainest way: one field, all arguments as variables,
everything selected. So what is compared is all that is GraphQL: parsing, validation, variables, defaults,
fragments, directives, merging, order, nulls and the paths of errors. Prints each difference; ends with 1 if there are any.
"""

import json
import random
import re
import sys
import urllib.error
import urllib.request

import graphql
from graphql import (
    GraphQLError, Undefined, build_client_schema, get_introspection_query, get_named_type, get_nullable_type,
    is_enum_type, is_input_object_type, is_leaf_type, is_list_type, is_non_null_type, is_object_type,
)

PLACES = ["draft", "review", "done"]
TOKENS = [f"00000000-0000-7000-8000-{n:012d}" for n in range(4)]
NOWHERE = "00000000-0000-7000-8000-ffffffffffff"
ID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z$")


def send(url, body):
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json", "accept": "application/graphql-response+json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def prepare(url):
    workflow = {
        "id": "paper", "name": "Paper", "places": PLACES, "initialPlace": "draft",
        "placeSettings": [{"place": "draft", "name": "Draft", "metadata": {"a": [1, None]}}],
        "transitions": [
            {"id": "submit", "fromPlaces": ["draft"], "toPlace": "review", "accepts": ["n", "note"]},
            {"id": "accept", "fromPlaces": ["review"], "toPlace": "done", "conditions": ["token.data.n > 2"]},
            {"id": "edit", "fromPlaces": ["draft", "review"], "toPlace": "draft", "name": "Edit"},
        ],
    }
    create = "mutation($w: WorkflowDefinitionInput!) { createWorkflow(input: $w) { id } }"
    requests = [(create, {"w": workflow})]
    for n, token in enumerate(TOKENS):
        data = [{"n": n, "s": "é\n"}, None, {"n": 3, "l": [1, 2.5, {"x": None}]}, {}][n]
        entry = {"id": token, "workflowId": "paper", "data": data, "metadata": {"by": "me"}}
        requests.append(("mutation($t: TokenCreateInput!) { createToken(input: $t) { id } }", {"t": entry}))
    move = "mutation($m: TransitionFireInput!) { fireTransition(input: $m) { version } }"
    for n in (1, 2):
        requests.append((move, {"m": {"tokenId": TOKENS[n], "transitionId": "submit", "data": {"note": "x"}}}))
    for query, variables in requests:
        status, answer = send(url, {"query": query, "variables": variables})
        assert status == 200 and "errors" not in answer, answer


def sent(value):
    """Without the members whose variables were not sent."""
    if isinstance(value, dict):
        return {name: sent(member) for name, member in value.items() if member is not Undefined}
    if isinstance(value, list):
        return [None if item is Undefined else sent(item) for item in value]
    return value


class Reference:
    """graphql-core over the schema, with another server's data."""

    def __init__(self, url):
        self.url = url
        _, answer = send(url, {"query": get_introspection_query(input_value_deprecation=True)})
        self.schema = build_client_schema(answer["data"])
        self.everything = {}

    def all_of(self, type_):
        named = get_named_type(type_)
        if is_leaf_type(named):
            return ""
        if named.name not in self.everything:
            fields = (f"{name} {self.all_of(field.type)}" for name, field in named.fields.items())
            self.everything[named.name] = "{ " + " ".join(fields) + " }"
        return self.everything[named.name]

    def resolve(self, source, info, **arguments):
        if info.parent_type not in (self.schema.query_type, self.schema.mutation_type):
            return source[info.field_name]
        field = info.parent_type.fields[info.field_name]
        names = {name: f"v{n}" for n, name in enumerate(arguments)}
        head = ", ".join(f"${short}: {field.args[name].type}" for name, short in names.items())
        pairs = ", ".join(f"{name}: ${short}" for name, short in names.items())
        kind = "query" if info.parent_type is self.schema.query_type else "mutation"
        call = f"{info.field_name}{f'({pairs})' if pairs else ''} {self.all_of(field.type)}"
        variables = {short: sent(arguments[name]) for name, short in names.items()}
        query = f"{kind}{f'({head})' if head else ''} {{ {call} }}"
        _, answer = send(self.url, {"query": query, "variables": variables})
        if answer.get("errors"):
            raise GraphQLError(answer["errors"][0]["message"])
        return answer["data"][info.field_name]

    def answer(self, body):
        """What is told: nothing where it is not executed, else the data and the paths of the errors."""
        try:
            document = graphql.parse(body["query"])
        except GraphQLError as error:
            return None, str(error)
        errors = graphql.validate(self.schema, document)
        if errors:
            return None, str(errors[0])
        # A name that is empty is none, as some clients send it.
        result = graphql.execute(
            self.schema, document, variable_values=body.get("variables") or {},
            operation_name=body.get("operationName") or None, field_resolver=self.resolve,
        )
        if result.data is None and all(error.path is None for error in result.errors):
            return None, str(result.errors[0])
        return (result.data, sorted(str(error.path) for error in result.errors or [])), ""


class Generator:
    """Documents: mostly right, each with a chance of everything that can be wrong with it."""

    def __init__(self, schema, seed):
        self.schema, self.random = schema, random.Random(seed)
        self.wrong = self.random.choice([0, 0, 0.01, 0.04])
        self.variables, self.sent, self.fragments = [], {}, []

    def chance(self, share):
        return self.random.random() < share

    def document(self):
        operations = []
        names = self.random.sample(["A", "B", "C"], self.random.choice([1, 1, 1, 2]))
        for name in names:
            self.variables = []
            kind = self.random.choice(["query", "query", "mutation"])
            root = self.schema.query_type if kind == "query" else self.schema.mutation_type
            selection = self.selection(root, 0, 2 if kind == "mutation" else 3)
            head = ", ".join(f"${v}: {t}{d}" for v, t, d in self.variables if not self.chance(self.wrong))
            if self.chance(self.wrong):
                head += " $unused: Int"
            if len(names) == 1 and self.chance(0.3) and not head and kind == "query":
                operations.append(selection)
            else:
                shown = "" if len(names) == 1 and self.chance(0.5) else f" {name}"
                operations.append(f"{kind}{shown}{f'({head})' if head.strip() else ''} {selection}")
        body = {"query": self.blanks(" ".join(operations + self.fragments))}
        if len(names) > 1 or self.chance(0.2):
            body["operationName"] = "" if self.chance(0.1) else self.random.choice(names + ["D"] * self.chance(0.1))
        if self.sent or self.chance(0.2):
            body["variables"] = self.sent
        return body

    def blanks(self, text):
        if self.chance(0.1):
            text = text.replace(" ", self.random.choice(["\n", ",", "\t ", " #,{\n"]))
        if self.chance(self.wrong):
            at = self.random.randrange(len(text))
            text = text[:at] + self.random.choice(["}", "{", "$", "!", '"', "\\", "é", "..."]) + text[at + 1:]
        return text

    def selection(self, parent, depth, most=4):
        parts = [self.part(parent, depth) for _ in range(self.random.randint(1, most))]
        return "{ " + " ".join(parts) + " }"

    def part(self, parent, depth):
        kind = self.random.random()
        if kind < 0.06:
            on = self.random.choice(["", f" on {parent}"]) if not self.chance(self.wrong) else " on Health"
            return f"...{on}{self.directive()} {self.selection(parent, depth, 2)}"
        if kind < 0.12 and depth < 4:
            name = f"F{len(self.fragments)}"
            at = len(self.fragments)
            self.fragments.append("")
            self.fragments[at] = f"fragment {name} on {parent} {self.selection(parent, depth, 2)}"
            spread = f"...{name}{self.directive()}"
            return spread + (" " + spread if self.chance(0.2) else "")
        if kind < 0.17:
            return self.alias(0.5) + "__typename" + self.directive()
        name = self.random.choice(list(parent.fields))
        field = parent.fields[name]
        if self.chance(self.wrong):
            name += "x"
        text = self.alias(0.25) + name + self.arguments(field) + self.directive()
        inner = get_named_type(field.type)
        if is_object_type(inner) != self.chance(self.wrong):
            text += " " + (self.selection(inner, depth + 1) if is_object_type(inner) else "{ id }")
        return text

    def alias(self, share):
        return self.random.choice(["a", "b", "id", "place"]) + ": " if self.chance(share) else ""

    def directive(self):
        if not self.chance(0.12):
            return ""
        name = self.random.choice(["skip", "include"]) if not self.chance(self.wrong) else "deprecated"
        return f" @{name}(if: {self.value(self.schema.type_map['Boolean'], True)})"

    def arguments(self, field):
        pairs = []
        for name, argument in field.args.items():
            if is_non_null_type(argument.type) and argument.default_value is Undefined:
                given = not self.chance(self.wrong)
            else:
                given = self.chance(0.4)
            if given:
                pairs.append(f"{name}: {self.value(argument.type, name=name)}")
            if self.chance(self.wrong):
                pairs.append(self.random.choice(["nothing: 1", f"{name}: null"]))
        self.random.shuffle(pairs)
        return f"({', '.join(pairs)})" if pairs else ""

    def value(self, type_, required=False, name="", depth=0):
        """A literal, or a variable."""
        if self.chance(0.3) and depth < 4:
            return self.variable(type_, required, name)
        if not is_non_null_type(type_) and not required and self.chance(0.1) or self.chance(self.wrong):
            return "null"
        type_ = get_nullable_type(type_)
        if self.chance(self.wrong):
            return self.random.choice(["5", "5.5", '"five"', "FIVE", "{ five: 5 }", "[5]", "true"])
        if is_list_type(type_):
            if self.chance(0.1):
                return self.value(type_.of_type, True, name, depth + 1)
            return "[" + ", ".join(self.value(type_.of_type, False, name, depth + 1) for _ in range(self.random.randint(0, 3))) + "]"
        if is_input_object_type(type_):
            return "{" + ", ".join(f"{n}: {self.value(f.type, False, n, depth + 1)}" for n, f in self.members(type_)) + "}"
        if type_.name == "JSON":
            return self.json_literal(depth)
        return self.scalar(type_, name)

    def members(self, type_):
        for name, field in type_.fields.items():
            required = is_non_null_type(field.type) and field.default_value is Undefined
            # Without one each server would make its own.
            if name == "id" or required and not self.chance(self.wrong) or not required and self.chance(0.4):
                yield name, field

    def plain(self, type_, name):
        """What a variable may be sent as."""
        type_ = get_nullable_type(type_)
        if self.chance(self.wrong):
            return self.random.choice([5, 5.5, "five", {"five": 5}, [5], True, 2**31, "5", 5.0])
        if is_list_type(type_):
            if self.chance(0.1):
                return self.plain(type_.of_type, name)
            return [self.plain(type_.of_type, name) for _ in range(self.random.randint(0, 3))]
        if is_input_object_type(type_):
            return {n: self.plain(f.type, n) for n, f in self.members(type_)}
        if type_.name == "JSON":
            return self.random.choice([None, 5, -0.5, "x", {"n": 1, "note": None}, [1, {"a": []}], {}, {"n": 9}])
        return json.loads(re.sub('^"""|"""$', '"', self.scalar(type_, name)))

    def scalar(self, type_, name):
        if type_.name == "Boolean":
            return self.random.choice(["true", "false"])
        if type_.name == "Int":
            return self.random.choice(["0", "1", "2", "3", "-1", "2147483647"] if name != "version" else ["1", "2"])
        if is_enum_type(type_):
            return self.random.choice(list(type_.values))
        if name in ("workflowId",):
            return self.random.choice(['"paper"', '"paper"', '"nothing"', '"pap\\u0065r"'])
        if name in ("tokenId", "id"):
            return json.dumps(self.random.choice(TOKENS + [NOWHERE, "no uuid"]))
        if name in ("placeId", "initialPlace", "newPlace", "toPlace", "place", "fromPlaces", "places"):
            return json.dumps(self.random.choice(PLACES + ["nowhere"] * self.chance(0.1)))
        if name == "transitionId":
            return self.random.choice(['"submit"', '"accept"', '"edit"', '"none"'])
        return self.random.choice(['""', '"a\\tb\\u00e9\\"\\\\"', '"é"', '"x"'])

    def variable(self, type_, required, name):
        written = str(type_)
        if required and not written.endswith("!"):
            written += "!"
        default = ""
        if self.chance(0.25):
            written = written.rstrip("!") if not self.chance(self.wrong) else written
            default = " = " + self.without_variables(type_, name)
        elif not required and not written.endswith("!") and self.chance(0.2) or self.chance(self.wrong):
            written = written.rstrip("!") if written.endswith("!") else written + "!"
        variable = f"v{len(self.variables)}"
        self.variables.append((variable, written, default))
        fate = self.random.random()
        if fate < 0.8 or written.endswith("!") and not default and not self.chance(self.wrong):
            self.sent[variable] = self.plain(type_, name)
        elif fate < 0.9 and not written.endswith("!"):
            self.sent[variable] = None
        return f"${variable}"

    def without_variables(self, type_, name):
        before, self.variables = self.variables, []
        sent = dict(self.sent)
        while True:
            text = self.value(type_, True, name, depth=9)
            if "$" not in text:
                self.variables, self.sent = before, sent
                return text

    def json_literal(self, depth):
        kinds = ["1", "-2", "0.5", '"s\\n"', '"""\n  block \\"""\n    text\n"""', '"""\n  block\n    text\n"""', "true", "null", "NAME", "[", "{", "{", "$"]
        kind = self.random.choice(kinds if depth < 4 else kinds[:8])
        if kind == "[":
            return "[" + " ".join(self.json_literal(depth + 1) for _ in range(self.random.randint(0, 3))) + "]"
        if kind == "{":
            names = self.random.sample(["n", "note", "x", "deep"], self.random.randint(0, 3))
            return "{" + " ".join(f"{name}: {self.json_literal(depth + 1)}" for name in names) + "}"
        if kind == "$":
            return self.variable(self.schema.type_map["JSON"], False, "data")
        return kind


def plain(value):
    """Without what differs between two servers: times, and ids that a server made."""
    if isinstance(value, dict):
        return [[name, plain(member)] for name, member in value.items()]
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and TIME.match(value):
        return "a time"
    return "an id" if isinstance(value, str) and ID.match(value) and value not in TOKENS else value


def compare(url, reference, seed):
    body = Generator(reference.schema, seed).document()
    status, told = send(url, body)
    errors = told.get("errors", [])
    code = errors[0]["extensions"]["code"] if errors else ""
    message = errors[0]["message"] if errors else ""
    if code == "QUERY_TOO_COMPLEX":
        return "limit", None
    if "is used where null may not be" in message:
        # The reference does what comes before, and may never come to where it would fail.
        return "refused before it fails", None
    expected, reason = reference.answer(body)
    if expected is None:
        same = status == 400 and "data" not in told and errors
        return "refused", None if same else (body, told, f"refused: {reason}")
    data, paths = expected
    told_paths = sorted(str(error.get("path")) for error in errors)
    same = status == 200 and plain(told.get("data")) == plain(data) and bool(paths) == bool(told_paths)
    # Where several errors make the same field null, either is right: the reference goes on with the others or not.
    same = same and (set(told_paths) <= set(paths) or set(paths) <= set(told_paths) or data is None)
    kind = "failed in part" if paths else "answered"
    return kind, None if same else (body, told, {"data": data, "paths": paths})


def main():
    url, other, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    prepare(url)
    prepare(other)
    reference = Reference(other)
    kinds, different = {}, 0
    for seed in range(first, first + count):
        kind, difference = compare(url, reference, seed)
        kinds[kind] = kinds.get(kind, 0) + 1
        if difference:
            different += 1
            body, told, expected = difference
            print(f"seed {seed}:\n{body['query']}\n{json.dumps(body.get('variables'))} {body.get('operationName')!r}")
            print(f"  told:     {json.dumps(told)[:1500]}\n  expected: {json.dumps(expected)[:1500]}")
    print(json.dumps({"different": different, **kinds}))
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
