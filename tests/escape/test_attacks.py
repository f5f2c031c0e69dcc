"""Every attack of `purple doctor --attack` is refused, and the same attack succeeds where the rule is off.

That is each attack's control: a sandbox without that layer, a policy that grants it, or namespaces
without the rest, in which a helper plays the host. What the kernel itself keeps from everybody but real
root has its control as root.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.cli import main as purple
from purplebox.isolation import Engine, plan, probes, sandbox
from purplebox.isolation.attack import ATTACKS, Attack, answer_of, attack, program, targets
from purplebox.isolation.bpf import ALLOW
from purplebox.isolation.egress import shared
from purplebox.isolation.landlock import abi_version
from purplebox.isolation.plan import Plan
from purplebox.policies import Policy, load_policy
from purplebox.policies.addresses import Address
from purplebox.policies.hosts import Hosts
from purplebox.policies.model import HostRule, Network

BASE = load_policy("base")
Change = Callable[[pytest.MonkeyPatch], None]  # of all engines from here on
EVERYTHING = struct.pack("=HBBI", 6, 0, 0, ALLOW)  # BPF_RET


def without_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_program(policy: Policy, plan: Plan) -> bytes:
        return EVERYTHING

    monkeypatch.setattr(sandbox, "compile_program", compile_program)


def without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    _change_plans(monkeypatch, lambda made: made._replace(landlock_abi=0))


def with_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"GIT_PURPLE": "x"}
    _change_plans(monkeypatch, lambda made: made._replace(environment={**made.environment, **more}))


def _change_plans(monkeypatch: pytest.MonkeyPatch, change: Callable[[Plan], Plan]) -> None:
    compiled = plan.compile_plan

    def compile_plan(policy: Policy, workspace: Path | None, **more: Any) -> Plan:
        return change(compiled(policy, workspace, **more))

    monkeypatch.setattr(sandbox, "compile_plan", compile_plan)


def reaching(host: str, found: Mapping[str, Any], **more: Any) -> Policy:
    rule = HostRule(host=host, ports=(found["port"],), **more)
    return BASE.model_copy(update={"network": Network(isolated=False, allow=(rule,))})


async def to_the_loopback(name: str) -> Sequence[Address]:
    return [IPv4Address("127.0.0.1")]


def granting(found: Mapping[str, Any]) -> Policy:
    filesystem = BASE.filesystem.model_copy(
        update={"read": (os.path.dirname(found["secret"]),), "protect": ()}
    )
    return BASE.model_copy(update={"filesystem": filesystem})


AIM = """
import sys
from purplebox.isolation.attack import targets
from purplebox.policies import load_policy
with targets(load_policy("base")) as (workspace, found):
    print(workspace, found["socket"], flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_attacker_has_put_up_goes_with_the_next() -> None:
    def aiming() -> tuple[subprocess.Popen[str], list[Path]]:
        argv = [sys.executable, "-c", AIM]
        made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert made.stdout is not None
        return made, [Path(path).parent for path in made.stdout.readline().split()]

    (killed, left), (other, held) = aiming(), aiming()
    with killed, other:
        killed.kill()
        killed.wait()
        assert [path.is_dir() for path in left] == [True, True]  # the control
        with targets(BASE) as (workspace, _):
            assert workspace.is_dir()
            assert [path.exists() for path in left] == [False, False]
            assert [path.is_dir() for path in held] == [True, True]  # somebody attacks still
        assert not workspace.exists()
        other.communicate("")
    assert not any(path.exists() for path in held)


@dataclass(frozen=True, kw_only=True)
class Inside:
    """The control in a sandbox that is changed.

    Attributes:
        change: Of its engine.
        policy: Made from what is aimed at; None is `base`.
        found: Instead of what the attack aims at.
        answers: With which the attack succeeds: what it then meets has nothing to do with the layer.
    """

    change: Change = lambda monkeypatch: None
    policy: Callable[[Mapping[str, Any]], Policy] = lambda found: BASE
    found: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: {}
    answers: tuple[str, ...] = ("ok",)


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The control by a helper outside, root in namespaces of its own.

    Attributes:
        user: Whether it has a user namespace; without one it is the caller, who must be root.
        found: Instead of what the attack aims at.
    """

    user: bool = True
    found: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: {}
    answers: tuple[str, ...] = ("ok",)


FREE = Inside(change=without_seccomp)
OUTSIDE = Outside()
CONTROLS: dict[str, Inside | Outside] = {
    "see_processes": Outside(answers=("sees",)),
    "read_secrets_of_processes": Outside(answers=("in /proc/",)),
    "signal_the_host": OUTSIDE,
    "enter_namespaces_of_pid_1": Outside(found=lambda found: {"process": "self"}),
    "change_cgroup": OUTSIDE,
    "read_secret": Inside(policy=granting),
    "run_from_memory": Inside(policy=granting),
    "link_secret": Inside(policy=granting),
    "read_by_pid_1": Inside(policy=granting, found=lambda found: {"process": "self"}),
    "write_protected": Inside(policy=granting),
    "write_outside": Inside(found=lambda found: {"places": [os.path.dirname(os.path.dirname(os.path.dirname(found["protected"])))]}),
    "write_kernel_settings": Inside(change=without_landlock, found=lambda found: {"settings": ["/proc/self/oom_score_adj"]}),
    "overwrite_programs": Inside(policy=granting, found=lambda found: {"programs": [found["protected"]]}),
    "leave_by_descriptor": Outside(answers=("inherited",)),
    "find_old_root": Outside(answers=("seen below",)),
    "gain_by_setuid": Outside(answers=("without nosuid",)),
    "hold_privilege": Outside(answers=("Cap",)),
    "be_root_on_the_host": Outside(user=False, answers=("uid 0 outside",)),
    "become_root": OUTSIDE,
    "use_what_only_landlock_holds": Inside(change=without_landlock),
    "read_memory_of_pid_1": Inside(found=lambda found: {"process": "self"}),
    "new_user_namespace": FREE,
    "clone_user_namespace": FREE,
    "io_uring": Outside(answers=("ok", "EPERM", "ENOSYS") if not os.path.exists("/proc/sys/kernel/io_uring_disabled") or Path("/proc/sys/kernel/io_uring_disabled").read_text().strip() != "0" else ("ok",)),
    "ptrace": FREE,
    "process_memory": FREE,
    "steal_descriptor": FREE,
    "keyring": FREE,
    "userfaultfd": FREE,
    "perf": Outside(user=False, answers=("ok", "ENOENT", "EOPNOTSUPP", "ENODEV")),
    "mount_api": OUTSIDE,
    "change_root": OUTSIDE,
    "file_handles": Inside(change=without_seccomp, answers=("ok", "EOVERFLOW")),
    "kernel_programs": Outside(user=False, answers=("E",)),
    "administration": Outside(user=False, answers=("E",)),
    "socket_families": Outside(user=False, answers=("family",)),
    "netlink_families": FREE,
    "make_setuid": FREE,
    "type_into_the_terminal": Inside(change=without_seccomp, answers=("ok", "EIO")),
    "clone3": Inside(change=without_seccomp, answers=("EINVAL",)),
    "foreign_entry": Inside(change=without_seccomp, answers=("ok", "SIGSEGV", "EBADF")),
    "x32_entry": Inside(change=without_seccomp, answers=("ENOSYS", "ok")),
    "more_processes": Inside(found=lambda found: {"processes": 16}),
    "reach_the_hosts_loopback": OUTSIDE,
    "reach_the_network": Outside(found=lambda found: {"far": [("127.0.0.1", found["port"])]}),
    "send_a_datagram": Outside(found=lambda found: {"unconnected": [("127.0.0.1", found["datagrams"])], "patience": 1}),
    "reach_a_name": Inside(policy=lambda found: reaching(found["names"][0][0], found, addresses=("127.0.0.1",)), found=lambda found: {"names": [(found["names"][0][0], found["port"])]}),
    "tunnel_through_the_gate": Inside(policy=lambda found: reaching("127.0.0.1", found)),
    "see_interfaces": Outside(answers=("sees",)),
    "reach_abstract_socket": OUTSIDE,
    "reach_path_socket": OUTSIDE,
    "inherit_variables": Inside(change=with_a_variable, answers=("has",)),
}  # fmt: skip

_LAUNCH = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
user = sys.argv[1] == "user"
uid, gid = os.geteuid(), os.getegid()
if libc.unshare((0x10000000 if user else 0) | 0x00020000 | 0x08000000):  # USER, NS, IPC
    sys.exit(os.strerror(ctypes.get_errno()))
if user:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        open(f"/proc/self/{name}", "w").write(text)
if libc.mount(None, b"/", None, 0x4000 | 0x40000, None):  # MS_REC | MS_PRIVATE
    sys.exit(os.strerror(ctypes.get_errno()))
os.chdir(sys.argv[2])
os.setsid()
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", *sys.argv[3:]])
"""


def outside(name: str, control: Outside, found: Mapping[str, Any], directory: Path) -> str:
    if not control.user and os.geteuid() != 0:
        pytest.skip("needs root")
    host = json.dumps(probes.namespaces())
    aimed = json.dumps({**found, **control.found(found)})
    fd = os.open("/", os.O_RDONLY)
    try:
        kind = "user" if control.user else "root"
        run = subprocess.run(
            [sys.executable, "-c", _LAUNCH, kind, str(directory), program(), name, host, aimed],
            capture_output=True, text=True, check=False, pass_fds=[fd],
        )  # fmt: skip
    finally:
        os.close(fd)
    return run.stdout.strip() or run.stderr


def inside(
    name: str, control: Inside, found: Mapping[str, Any], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> str:  # fmt: skip
    control.change(monkeypatch)
    policy = control.policy(found)
    policy = policy.model_copy(update={"require": ()})

    async def go() -> str:
        async with Engine(policy, workspace, resolve=to_the_loopback) as engine:
            return await answer_of(engine, name, {**found, **control.found(found)})

    return asyncio.run(go())


@pytest.fixture
def aim() -> Iterator[tuple[Path, dict[str, Any]]]:
    with targets(BASE) as put_up:
        yield put_up


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.name)
def test_an_attack_succeeds_without_the_rule(
    one: Attack, aim: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    workspace, found = aim
    control = CONTROLS[one.name]
    if "landlock" in one.needs and abi_version() == 0:
        return
    if one.name == "see_interfaces" and not any(
        path.read_text().strip() != "down"
        for path in Path("/sys/class/net").glob("*/operstate")
        if path.parent.name != "lo"
    ):
        return  # this host has a loopback and nothing else to see
    if isinstance(control, Outside):
        answer = outside(one.name, control, found, workspace)
    else:
        answer = inside(one.name, control, found, workspace, monkeypatch)
    assert answer.startswith(control.answers), answer
    assert not set(answer.split()) <= one.answers or answer in ("SIGSEGV", "EBADF"), answer


@pytest.mark.parametrize(
    "name",
    ["base", "strict", "code-assistant", "mcp-server", "ci-build", "web-scraper", "llm-inference"],
)
def test_every_attack_on_a_shipped_profile_is_refused(name: str) -> None:
    policy = load_policy(name)
    policy = policy.model_copy(update={"require": ()})  # on a host without cgroups, too
    layers = asyncio.run(attack(policy))
    assert [layer.sentence() for layer in layers if layer.broken] == []
    assert len([o for layer in layers for o in layer.outcomes]) >= len(ATTACKS) - 3


INSPECTED = """
name: inspected
extends: base
require: []
network:
  isolated: false
  tls: inspect
  allow: [{host: "**"}, {host: 127.0.0.1, ports: [9]}, {host: "0.0.0.0/0"}, {host: localhost, addresses: ["127.0.0.0/8"]}]
  credentials: [{host: a.example, header: A, value: "${secret:A_TOKEN}", placeholder_env: GIT_TOKEN}]
environment: {pass: [GIT_EDITOR], set: {GIT_PAGER: cat}}
"""


def attacked(policy: Policy) -> list[str]:
    return [layer.sentence() for layer in asyncio.run(attack(policy)) if layer.broken]


def test_what_a_policy_grants_is_no_attack_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that the view itself sets, wide rules: what is attacked is what none of them allows."""
    monkeypatch.setenv("A_TOKEN", "t")
    monkeypatch.setenv("GIT_EDITOR", "ed")
    file = tmp_path / "inspected.yaml"
    file.write_text(INSPECTED)
    assert attacked(load_policy(str(file))) == []
    with_a_variable(monkeypatch)
    (said,) = attacked(load_policy(str(file)))
    assert said == "environment  BROKEN   1 of 1 attack: inherit_variables: has ['GIT_PURPLE']"


@pytest.mark.parametrize(
    "rule",
    [
        HostRule(host="127.0.0.0/8", ports=tuple(range(1024, 65536))),
        HostRule(host="purple-attack.invalid"),
        HostRule(host="203.0.113.0/24"),
    ],
    ids=lambda rule: rule.host,
)
def test_a_gate_that_lets_through_what_no_rule_allows_is_found(
    rule: HostRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wider(network: Network) -> Hosts:
        return Hosts(network.model_copy(update={"allow": (*network.allow, rule)}))

    policy = load_policy("ci-build").model_copy(update={"require": ()})
    monkeypatch.setattr(shared, "Hosts", wider)
    (said,) = attacked(policy)
    assert said.startswith("network") and "tunnel_through_the_gate: ok" in said


def test_every_attack_has_its_control() -> None:
    assert {one.name for one in ATTACKS} == set(CONTROLS)


def test_probes_refuse_to_run_outside(tmp_path: Path) -> None:
    """Lesson 48: run by hand, by root even, nothing is tried."""
    target = tmp_path / "target"
    target.write_text("as it was")
    host = json.dumps(probes.namespaces())
    for told in (host, "{}"):
        run = subprocess.run(
            [sys.executable, "-c", program(), "overwrite_programs", told, json.dumps({"programs": [str(target)]})],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == probes.NOT_IN_A_SANDBOX
        assert "nothing was tried" in run.stderr
    assert target.read_text() == "as it was"


def test_doctor_says_a_line_a_layer_and_fails_when_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert purple(["doctor", "--attack", "-p", "base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(dict.fromkeys(one.layer for one in ATTACKS))
    assert all(line.split()[1] in ("held", "skipped") for line in lines)
    without_seccomp(monkeypatch)
    assert purple(["doctor", "--attack", "-p", "base"]) == 1
    (broken,) = [line for line in capsys.readouterr().out.splitlines() if "BROKEN" in line]
    assert broken.startswith("seccomp") and "keyring: ok" in broken


def test_a_gateway_told_to_attack_first_refuses_to_serve(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[str] = []

    async def serve(policy: Policy, *_: Any, **__: Any) -> None:
        served.append(policy.name)

    monkeypatch.setattr("purplebox.gateway.server.serve_tools", serve)
    for name in ("ci-build", "base"):
        command = ["serve", "-p", name, "-w", str(workspace), "--attack-first"]
        assert purple(command) == 0
    assert served == ["ci-build", "base"]
    without_seccomp(monkeypatch)
    assert purple(command) == 1
    assert served == ["ci-build", "base"]
    assert "not serving" in capsys.readouterr().err
