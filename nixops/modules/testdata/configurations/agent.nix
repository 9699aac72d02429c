# The least that an agent needs.
{
  imports = [
    ../../../../roles/agent/module.nix
    ./trust.nix
  ];
  networking.hostName = "web-01";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
  };
}
