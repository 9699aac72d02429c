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

  onHealthFailure = "halt";

  # modeOf :: the compliance of a channel -> its mode
  modeOf = compliance: compliance.mode or "disabled";
}
