# What a declaration means where it says nothing. Both mkFleet, which writes the document,
# and the checks, which judge it, read it here.
{
  # The frameworks that v1 knows without being told; `frameworks` replaces them.
  frameworks = [
    "anssi-bp028"
    "dora"
    "iso27001"
    "nis2"
  ];

  freshnessWindow = 1440; # minutes
  signingIntervalMinutes = 60;
  reconcileIntervalMinutes = 30;

  # As in v1, so that a fleet.nix of v1 means here what it means there.
  onHealthFailure = "rollback-and-halt";

  # modeOf :: the compliance of a channel -> its mode
  #
  # As in v1 where frameworks are declared. A channel without any has nothing to enforce,
  # and its hosts need no collector of evidence.
  modeOf =
    compliance: compliance.mode or (if compliance.frameworks or [ ] == [ ] then "disabled" else "enforce");
}
