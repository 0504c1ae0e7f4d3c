"""The kernel side of a mount: session, INIT, INVAL, knobs, rights, client processes, the watchdog."""
