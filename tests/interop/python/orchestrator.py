"""Submits tasks and works as a small orchestrator: connect, grant credits, accept, complete.

    python orchestrator.py HOST:PORT PROTO_DIR SCRATCH_DIR [--tasks N]

Needs grpcio and grpcio-tools. The client's code is generated from PROTO_DIR into SCRATCH_DIR first. Exits with 0 when every
task that it submitted has succeeded by its own hand.
"""

import argparse
import pathlib
import queue
import sys
import threading

import grpc
import grpc_tools
from grpc_tools import protoc


def generate(proto: pathlib.Path, out: pathlib.Path) -> None:
    """Generates the client's code, and makes it importable."""
    files = [str(path.relative_to(proto)) for path in sorted(proto.glob("millrace/**/*.proto"))]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + files) != 0:
        sys.exit("the contracts could not be generated")
    sys.path.insert(0, str(out))


class Orchestrator:
    """Holds at most `slots` attempts at a time. An attempt here ends as soon as it has begun."""

    def __init__(self, stub, pb, slots: int):
        self.stub, self.pb, self.slots = stub, pb, slots
        self.requests: queue.Queue = queue.Queue()
        self.grants = self.seen = 0
        self.done: dict[str, bytes] = {}

    def send(self, **message) -> None:
        self.requests.put(self.pb.ConnectOrchestratorRequest(**message))

    def grant(self) -> None:
        """Credits are absolute: how many more it can take beyond the last assignment seen."""
        self.grants += 1
        self.send(grant=self.pb.Grant(seq=self.grants, credits=self.slots, acked_seq=self.seen))

    def run(self, wanted: int) -> None:
        """Works until `wanted` tasks are recorded as succeeded."""
        self.send(hello=self.pb.Hello(name="python", queues=["default"], slots=self.slots))
        for answer in self.stub.ConnectOrchestrator(iter(self.requests.get, None)):
            kind = answer.WhichOneof("message")
            if kind == "welcome":
                self.grant()
                heartbeat = threading.Thread(target=self.beat, args=(answer.welcome,), daemon=True)
                heartbeat.start()
            elif kind == "assignments":
                self.take(answer.assignments.assignments)
            elif kind == "completion_results":
                for result in answer.completion_results.results:
                    assert result.status == self.pb.CompletionResult.STATUS_RECORDED, result
                    self.done[result.lease.task_id] = b""
                if len(self.done) >= wanted:
                    self.send(goodbye=self.pb.Goodbye())
                    self.requests.put(None)
                    return

    def take(self, assignments) -> None:
        leases = [
            self.pb.LeaseRef(task_id=a.task_id, attempt=a.attempt, lease_token=a.lease_token) for a in assignments
        ]
        self.seen = max([self.seen] + [a.seq for a in assignments])
        self.send(accepted=self.pb.Accepted(leases=leases))
        completions = [self.pb.Completion(lease=lease, outcome={"kind": "OUTCOME_KIND_SUCCEEDED"}) for lease in leases]
        self.send(completions=self.pb.Completions(completions=completions))
        self.grant()

    def beat(self, welcome) -> None:
        """Renews the lease. It holds nothing between two messages, so count and digest stay zero."""
        interval = welcome.heartbeat_interval.ToNanoseconds() / 1e9
        stop, seq = threading.Event(), 0
        while not stop.wait(interval):
            seq += 1
            self.send(heartbeat=self.pb.Heartbeat(seq=seq))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint")
    parser.add_argument("proto", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    generate(options.proto.resolve(), options.scratch.resolve())

    from millrace.common.v1 import task_pb2
    from millrace.distributor.v1 import distributor_pb2, distributor_pb2_grpc, orchestrator_pb2

    channel = grpc.insecure_channel(options.endpoint)
    stub = distributor_pb2_grpc.DistributorServiceStub(channel)
    spec = task_pb2.TaskSpec(executor="process", command=task_pb2.Command(argv=["true"]), labels={"from": "python"})
    ids = set()
    for number in range(options.tasks):
        request = distributor_pb2.SubmitTaskRequest(request_id=f"python-{number}", spec=spec)
        ids.add(stub.SubmitTask(request).task.id)
    # A repeat of a submission changes nothing.
    repeat = stub.SubmitTask(distributor_pb2.SubmitTaskRequest(request_id="python-0", spec=spec))
    assert repeat.existing and repeat.task.id in ids

    orchestrator = Orchestrator(stub, orchestrator_pb2, slots=10)
    orchestrator.run(len(ids))
    assert set(orchestrator.done) == ids, "it ran what it had submitted"

    states = set()
    for task_id in sorted(ids):
        *_, last = stub.WatchTask(distributor_pb2.WatchTaskRequest(id=task_id))
        states.add(task_pb2.TaskState.Name(last.task.state))
    assert states == {"TASK_STATE_SUCCEEDED"}, states
    print(f"{len(ids)} tasks succeeded")


if __name__ == "__main__":
    main()
