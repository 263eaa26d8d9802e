"""Who is offered ASGI's extensions for files: whoever's messages arrive as they were sent.

A message with a file says nothing to what stands between an application and its server in order to
see or to change bodies: one that compresses leaves the file as it is, one that collects a body
waits for it in vain. So `scope["extensions"]` answers each who asks for himself. In

    if "http.response.pathsend" in scope["extensions"]:
        await send({"type": "http.response.pathsend", "path": path})

the `send` is seen, that of the function that asks (or its `self._send`), and is followed from
wrapper to wrapper. The answer is yes where that ends at the server's own, and the source of each
wrapper shows that it sends every message on, once, and has an eye for its type, its status and its
headers alone. Of Starlette's middlewares those of CORS, sessions, errors and exceptions are so, and
all that do not wrap `send`.

Starlette's `BaseHTTPMiddleware` passes the message of a path on if the response of `call_next` is
returned as it came, or with other headers, as the source of its function shows. In front of it only
what is known by name is passed over.

Everything else hears no, and so does who asks in another way: it sees a dictionary of what others
offer. That is never wrong, only slower.
"""

import ast
import functools
import linecache
import opcode
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"

T = TypeVar("T")

_ASK = frozenset(
    opcode.opmap[name]
    for name in ("CONTAINS_OP", "BINARY_SUBSCR", "BINARY_OP", "CALL")
    if name in opcode.opmap
)
"""Instructions by which Python code looks something up."""
_CACHE = opcode.opmap["CACHE"]
_MOST_WRAPPERS = 64
_MOST_KNOWN = 1024
_WITH_HEADERS = frozenset({"headers", "status", "trailers"})
_OF_RESPONSE = frozenset(
    {"background", "delete_cookie", "headers", "raw_headers", "set_cookie", "status_code"}
)
_SEE_ALL = ("locals", "vars", "eval", "exec")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)

_BASE = "starlette.middleware.base"
_CALL_NEXT = "BaseHTTPMiddleware.__call__.<locals>.call_next.<locals>"
_BENEATH = {
    ("fastapi._body_limit", "AppBodyLimitMiddleware.__call__"): "app",
    ("fastapi.applications", "FastAPI.__call__"): "middleware_stack",
    ("fastapi.middleware.asyncexitstack", "AsyncExitStackMiddleware.__call__"): "app",
    ("fastapi.telemetry._asgi", "ExceptionTelemetryMiddleware.__call__"): "app",
    ("starlette.applications", "Starlette.__call__"): "middleware_stack",
    ("starlette.middleware.authentication", "AuthenticationMiddleware.__call__"): "app",
    ("starlette.middleware.body_limit", "RequestBodyLimitMiddleware.__call__"): "app",
    ("starlette.middleware.cors", "CORSMiddleware.__call__"): "app",
    ("starlette.middleware.errors", "ServerErrorMiddleware.__call__"): "app",
    ("starlette.middleware.httpsredirect", "HTTPSRedirectMiddleware.__call__"): "app",
    ("starlette.middleware.sessions", "SessionMiddleware.__call__"): "app",
    ("starlette.middleware.trustedhost", "TrustedHostMiddleware.__call__"): "app",
    ("uvicorn.middleware.proxy_headers", "ProxyHeadersMiddleware.__call__"): "app",
}
"""Applications that send on what those beneath them send, and the attribute where these are."""


class Offers(dict[str, Any]):
    """`scope["extensions"]` of one request: what others offer, and the extensions for files.

    `names` are those that are offered. The `send` that the server gave to `application` is a method
    of an object whose `offers` these are; its `expect_files` is called where they may come. Copies
    as plain dictionaries have what others offer alone.
    """

    __slots__ = ("application", "names")

    application: Any
    names: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.names) or len(self) > 0  # `scope["extensions"] or {}` is this

    def __contains__(self, name: object) -> bool:
        if name in self.names:
            return self._arrives(name, sys._getframe(1))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        if name in self.names and self._arrives(name, sys._getframe(1)):
            return {}
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """See dict."""
        if name in self.names and self._arrives(name, sys._getframe(1)):
            return {}
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """See dict: a middleware may take an offer away."""
        if name not in self.names:
            return super().pop(name, *default)
        self._withdraw(name)
        return {}

    def __delitem__(self, name: str) -> None:
        if name in self.names:
            self._withdraw(name)
        else:
            super().__delitem__(name)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __reduce_ex__(self, _: Any) -> Any:
        return self.__reduce__()

    def _withdraw(self, name: str) -> None:
        self.names = tuple(other for other in self.names if other != name)

    def _arrives(self, name: object, asking: types.FrameType) -> bool:
        """Return whether such a message of the function that asks arrives here as it was sent."""
        code, place = asking.f_code.co_code, asking.f_lasti
        while code[place] == _CACHE:  # behind an instruction that calls Python code
            place -= 2
        if code[place] not in _ASK:
            return False  # code without a frame asks, called by this one
        if _stands_around(asking.f_code):
            return False
        places = asking.f_locals
        send: Any = places.get("send")
        if send is None:
            send = getattr(places.get("self"), "_send", None)
        for _ in range(_MOST_WRAPPERS):
            if self._is_servers(send):
                send.__self__.expect_files()
                return True
            if _is_of(send, _BASE, f"{_CALL_NEXT}.send_no_error"):
                middleware = _middleware_of(send, asking)
                return name == PATHSEND and self._passes_paths(middleware)
            send = _next_of(send)
        return False

    def _is_servers(self, send: Any) -> bool:
        """Return whether it is what the server gave to `application` with these offers."""
        owner: Any = getattr(send, "__self__", None)
        return getattr(owner, "offers", None) is self and bool(send == owner.send)

    def _passes_paths(self, middleware: Any) -> bool:
        """Return whether a BaseHTTPMiddleware and all in front of it send a path on."""
        application = self.application
        for _ in range(_MOST_WRAPPERS):
            call = _method(application)
            if _is_of(call, _BASE, "BaseHTTPMiddleware.__call__"):
                if not _returns_what_came(application):
                    return False
                if application is middleware:
                    return True
                beneath = "app"
            elif isinstance(call, types.FunctionType):
                beneath = _BENEATH.get((_module_of(call), call.__code__.co_qualname), "")
                if beneath == "app" and "__call__" not in vars(type(application)):
                    return False  # a subclass, whose other methods see messages
            else:
                return False
            application = getattr(application, beneath, None) if beneath else None
        return False


def _method(application: Any) -> Any:
    """Return what runs when an object is called, where that is its class's."""
    return next(
        (vars(kind)["__call__"] for kind in type(application).__mro__ if "__call__" in vars(kind)),
        None,
    )


def _module_of(function: types.FunctionType) -> str:
    """Return the name of the module that a function is of, whatever functools.wraps has set."""
    return str(function.__globals__.get("__name__"))


def _is_of(function: Any, module: str, name: str) -> bool:
    return (
        isinstance(function, types.FunctionType)
        and function.__code__.co_qualname == name
        and _module_of(function) == module
    )


def _middleware_of(send: Any, frame: types.FrameType | None) -> Any:
    """Return the BaseHTTPMiddleware that has made a `send`; None where its task is another one."""
    while frame is not None:
        if frame.f_code.co_qualname == f"{_CALL_NEXT}.coro":
            places = frame.f_locals
            if places.get("send_no_error") is send:
                return places.get("self")
        frame = frame.f_back
    return None


def _next_of(send: Any) -> Any:
    """Return the `send` that is called with each message that this one gets; None if unknown."""
    given: dict[str, Any] = {}
    if isinstance(send, functools.partial) and not send.args:
        given, send = send.keywords, send.func
    function = getattr(send, "__func__", None) if isinstance(send, types.MethodType) else send
    if not isinstance(function, types.FunctionType):
        return None
    name = _called(function.__code__)
    if not name:
        return None
    if name.startswith("self."):
        return _kept_by(getattr(send, "__self__", None), name.removeprefix("self."))
    if name in given:
        return given[name]
    names = function.__code__.co_freevars
    if name not in names or function.__closure__ is None:
        return None
    return function.__closure__[names.index(name)].cell_contents


def _kept_by(owner: Any, name: str) -> Any:
    """Return an attribute that is the same each time, None if a property or the like makes it."""
    made = getattr(type(owner), name, None)
    if made is None or isinstance(made, types.FunctionType | types.MemberDescriptorType):
        return getattr(owner, name, None)
    return None


def _returns_what_came(middleware: Any) -> bool:
    """Return whether a BaseHTTPMiddleware returns the responses of `call_next` as they came."""
    if not _knows_paths(type(middleware)):
        return False
    dispatch = getattr(middleware, "dispatch_func", None)
    function = getattr(dispatch, "__func__", dispatch)
    return isinstance(function, types.FunctionType) and _leaves_bodies(function.__code__)


def _knows_paths(kind: type) -> bool:
    """Return whether this release of Starlette's passes paths on."""
    codes = _codes_in(kind.__call__.__code__)
    return any(PATHSEND in code.co_consts for code in codes)


def _known(find: Callable[[types.CodeType], T]) -> Callable[[types.CodeType], T]:
    """Ask a function once for each code object."""
    answers: dict[int, tuple[types.CodeType, T]] = {}

    @functools.wraps(find)
    def found(code: types.CodeType) -> T:
        answer = answers.get(id(code))
        if answer is None:
            if len(answers) >= _MOST_KNOWN:  # of code that is made anew all the time
                answers.clear()
            answer = answers[id(code)] = code, find(code)
        return answer[1]

    return found


# What sources show


@_known
def _stands_around(code: types.CodeType) -> bool:
    """Return whether a function asks for another, to which it hands its `receive`.

    That one will ask by itself. Meanwhile this one may copy the dictionary, and look in the copy
    for what it has heard of, or make up its own of what it has heard.
    """
    names = code.co_varnames[: code.co_argcount]
    if "send" not in names[1:]:
        return False
    receive = names[names.index("send") - 1]
    if receive == "scope":  # a part of an application that receives nothing
        return False
    node = _node_of(code)
    if node is None:
        return True
    made = {
        target.id
        for part in ast.walk(node)
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Call)
        for target in part.targets
        if isinstance(target, ast.Name)
    }
    hands_on = sends = takes_away = False
    for part, above in _with_parents(node):
        takes_away |= isinstance(part, ast.Delete)
        takes_away |= isinstance(part, ast.Attribute) and part.attr == "pop"
        if isinstance(part, ast.Name) and part.id in (receive, "send"):
            called = isinstance(above[-1], ast.Call) and above[-1].func is part
            within = any(isinstance(each, _FUNCTIONS) for each in above[1:])
            hands_on |= part.id == receive and not called and not _is_to_a_response(above[-1], made)
            sends |= part.id == "send" and called and not within
    return hands_on and (takes_away or not sends)


def _is_to_a_response(call: ast.AST, made: set[str]) -> bool:
    """Return whether what is called has been made in the same function, as by `Response()`."""
    match call:
        case ast.Call(func=ast.Call()):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in made
    return False


@_known
def _called(code: types.CodeType) -> str:
    """Return the name of what a wrapper of `send` calls once with each message, as it came.

    "" where it does something else, may do, or its source is not at hand.
    """
    node = _node_of(code)
    names = [argument.arg for argument in node.args.args] if node else []
    is_method = names[:1] == ["self"]
    if is_method:
        del names[0]
    if node is None or not names or node.args.vararg or node.args.kwarg:
        return ""
    message, *others = names
    awaited = {_awaited(part, message) for part in ast.walk(node)} - {""}
    if len(awaited) != 1:
        return ""
    [called] = awaited
    if called not in (*others, *code.co_freevars) and not (is_method and "." in called):
        return ""
    if _is_set_anew(called, node, _parsed(code.co_filename)[0]):
        return ""
    if not _looks_at_head_alone(node, message, called):
        return ""
    return called if _times_awaited(node.body, message) == {1} else ""


def _awaited(node: ast.AST, message: str) -> str:
    """Return x of `await x(message)`, a name or "self." and one, "" for everything else."""
    if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
        call = node.value
        one = len(call.args) == 1 and not call.keywords and _is_name(call.args[0], message)
        if one:
            match call.func:
                case ast.Name(id=name):
                    return name
                case ast.Attribute(value=ast.Name(id="self"), attr=name):
                    return f"self.{name}"
    return ""


def _is_set_anew(called: str, function: ast.AST, tree: ast.Module) -> bool:
    """Return whether what a wrapper calls may be another thing for the next message."""
    if not called.startswith("self."):
        [[_, outermost, *_]] = [
            [*above, part] for part, above in _with_parents(tree) if part is function
        ]
        return any(_sets_nonlocal(called, part) for part in ast.walk(outermost))
    name = called.removeprefix("self.")
    for part, above in _with_parents(tree):
        if _is_name(part, "setattr"):
            return True
        if isinstance(part, ast.Attribute) and part.attr == name:
            functions = [each for each in above if isinstance(each, _FUNCTIONS)]
            made = bool(functions) and getattr(functions[-1], "name", "") == "__init__"
            if not (made or isinstance(part.ctx, ast.Load)):
                return True
    return False


def _sets_nonlocal(name: str, function: ast.AST) -> bool:
    if not isinstance(function, _FUNCTIONS):
        return False
    inside = list(ast.walk(function))
    if not any(isinstance(part, ast.Nonlocal) and name in part.names for part in inside):
        return False
    return any(
        isinstance(part, ast.Name) and part.id == name and not isinstance(part.ctx, ast.Load)
        for part in inside
    )


def _looks_at_head_alone(function: ast.AsyncFunctionDef, message: str, called: str) -> bool:
    """Return whether a wrapper looks at a message's type and what a start has, nothing else."""
    for node, above in _with_parents(function):
        if isinstance(node, _FUNCTIONS) and node is not function:
            return False
        if _is_name(node, *_SEE_ALL):
            return False
        if isinstance(node, ast.Name) and node.id == called:
            if not (len(above) > 1 and _awaited(above[-2], message)):
                return False
        elif isinstance(node, ast.Name) and node.id == message:
            sent = len(above) > 1 and _awaited(above[-2], message)
            if not (sent or _is_look(node, above)):
                return False
    return True


def _is_look(node: ast.Name, above: list[ast.AST]) -> bool:
    """Return whether a message is looked at there in a way that bodies and files do not feel."""
    parent, *farther = above[::-1]
    if not isinstance(node.ctx, ast.Load):
        return False
    match parent:
        case ast.Subscript(slice=ast.Constant(value="type"), ctx=ast.Load()):
            return _is_of_start(farther[0])
        case ast.Subscript(slice=ast.Constant(value=key)):
            return key in _WITH_HEADERS
        case ast.Attribute(attr="get" | "setdefault"):
            match farther[0]:
                case ast.Call(args=[ast.Constant(value=key), *_]):
                    return key in _WITH_HEADERS
        case ast.keyword(arg="scope"):
            match farther[0]:
                case ast.Call(func=ast.Name(id="Headers" | "MutableHeaders"), args=[]):
                    return True
    return False


def _is_of_start(node: ast.AST) -> bool:
    """Return whether a comparison asks whether a message starts a response."""
    match node:
        case ast.Compare(
            ops=[ast.Eq() | ast.NotEq()], comparators=[ast.Constant(value="http.response.start")]
        ):
            return True
    return False


def _times_awaited(statements: list[ast.stmt], message: str) -> set[int]:
    """Return how often a message is sent on, by all ways through statements to a function's end.

    -1 stands for what is not seen through.
    """
    if not statements:
        return {0}
    first, *rest = statements
    if isinstance(first, ast.Return):
        return {0 if first.value is None else -1}
    if isinstance(first, ast.Raise):
        return set()
    if isinstance(first, ast.If):
        ways = [first.body, first.orelse]
        return set().union(*(_times_awaited([*way, *rest], message) for way in ways))
    if isinstance(first, ast.With | ast.AsyncWith):
        return _times_awaited([*first.body, *rest], message)
    sent = isinstance(first, ast.Expr) and bool(_awaited(first.value, message))
    inside = list(ast.walk(first))
    if not sent and any(_awaited(part, message) for part in inside):
        return {-1}
    if any(isinstance(part, ast.Return | ast.Yield | ast.YieldFrom) for part in inside):
        return {-1}
    return {-1 if times < 0 else times + sent for times in _times_awaited(rest, message)}


@_known
def _leaves_bodies(code: types.CodeType) -> bool:
    """Return whether a function for BaseHTTPMiddleware leaves responses' bodies alone.

    Responses of `call_next` get names, or are returned at once; what has such a name is asked for
    its headers, its status and its cookies, and returned.
    """
    node = _node_of(code)
    names = [argument.arg for argument in node.args.args] if node else []
    if names[:1] == ["self"]:
        del names[0]
    if node is None or len(names) != 2:
        return False
    call_next = names[1]
    responses: set[str] = set()
    for part, above in _with_parents(node):
        if isinstance(part, ast.Name) and part.id == call_next:
            if len(above) < 3 or not _is_awaited_call(part, above):
                return False
            match above[-3]:
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    responses.add(name)
                case ast.Return():
                    pass
                case _:
                    return False
        elif isinstance(part, ast.Global | ast.Nonlocal) or _is_name(part, *_SEE_ALL):
            return False
    return all(
        _is_fair(part, above)
        for part, above in _with_parents(node)
        if isinstance(part, ast.Name) and part.id in responses
    )


def _is_awaited_call(function: ast.Name, above: list[ast.AST]) -> bool:
    call, awaiting = above[-1], above[-2]
    return isinstance(call, ast.Call) and call.func is function and isinstance(awaiting, ast.Await)


def _is_fair(response: ast.Name, above: list[ast.AST]) -> bool:
    if isinstance(response.ctx, ast.Store):
        return True
    match above[-1]:
        case ast.Return():
            return True
        case ast.Attribute(attr=name):
            return name in _OF_RESPONSE
    return False


def _is_name(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _with_parents(
    node: ast.AST, above: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """Yield a node and all within it, each with the nodes around it, the innermost last."""
    yield node, list(above)
    for child in ast.iter_child_nodes(node):
        yield from _with_parents(child, (*above, node))


def _node_of(code: types.CodeType) -> ast.AsyncFunctionDef | None:
    """Return a function's source, parsed; None where what is there gives other code than runs."""
    tree, codes = _parsed(code.co_filename)
    if code not in codes:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(above.lineno for above in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


@functools.lru_cache(maxsize=2)
def _parsed(path: str) -> tuple[ast.Module, list[types.CodeType]]:
    """Return a file's source, parsed, and all code objects that it gives; none where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse("".join(linecache.getlines(path)))
            return tree, list(_codes_in(compile(tree, path, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], []), []


def _codes_in(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)
