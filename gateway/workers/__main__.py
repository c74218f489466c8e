"""`python -m gateway.workers`: one worker, as the supervisor starts it."""

import signal


def main() -> None:
    # Before the imports: who rotates a log may tell every process. The supervisor says what it means to us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from gateway.workers import worker

    worker.main()


if __name__ == "__main__":
    main()
