"""Asks a scaler what KEDA asks: GetMetricSpec, IsActive, StreamIsActive, GetMetrics.

    python keda.py HOST:PORT PROTO_DIR SCRATCH_DIR QUEUE

Needs grpcio and grpcio-tools. The client's code is generated from PROTO_DIR into SCRATCH_DIR first. Prints one JSON object with the answers;
exits with 0 when GetMetricSpec answered.
"""

import argparse
import json
import pathlib
import sys

import grpc
from grpc_tools import protoc

TIMEOUT_S = 5


def generate(proto: pathlib.Path, out: pathlib.Path) -> None:
    """Generates the client's code, and makes it importable."""
    folder = proto / "foreign" / "externalscaler"
    arguments = ["protoc", f"-I{folder}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + ["externalscaler.proto"]) != 0:
        sys.exit("the contract could not be generated")
    sys.path.insert(0, str(out))


def asked(call):
    """The answer, or the name of the error."""
    try:
        return call()
    except grpc.RpcError as error:
        return error.code().name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint")
    parser.add_argument("proto", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("queue")
    options = parser.parse_args()
    generate(options.proto.resolve(), options.scratch.resolve())

    import externalscaler_pb2 as pb
    import externalscaler_pb2_grpc

    stub = externalscaler_pb2_grpc.ExternalScalerStub(grpc.insecure_channel(options.endpoint))
    ref = pb.ScaledObjectRef(name="agents", namespace="ci", scalerMetadata={"queue": options.queue, "targetWaiting": "5"})
    spec = stub.GetMetricSpec(ref, timeout=TIMEOUT_S)
    [metric] = spec.metricSpecs

    def value():
        request = pb.GetMetricsRequest(scaledObjectRef=ref, metricName=metric.metricName)
        [found] = stub.GetMetrics(request, timeout=TIMEOUT_S).metricValues
        assert found.metricName == metric.metricName
        return found.metricValueFloat

    wrong = pb.ScaledObjectRef(name="agents", namespace="ci", scalerMetadata={"quee": options.queue})
    answers = {
        "metric": metric.metricName,
        "target": metric.targetSizeFloat,
        "active": asked(lambda: stub.IsActive(ref, timeout=TIMEOUT_S).result),
        "streamed": asked(lambda: next(iter(stub.StreamIsActive(ref, timeout=TIMEOUT_S))).result),
        "value": asked(value),
        "wrong": asked(lambda: len(stub.GetMetricSpec(wrong, timeout=TIMEOUT_S).metricSpecs)),
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
