{ ... }:
{
  services.nginx.enable = true;

  services.nixfleet-agent.healthChecks.http = [
    {
      name = "site";
      url = "http://127.0.0.1:80/";
    }
  ];

  # Take both from `nixos-generate-config` on the machine.
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.systemd-boot.enable = true;
}
