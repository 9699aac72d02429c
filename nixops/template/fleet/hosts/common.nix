# What every host of the fleet has in common.
{ config, lib, ... }:
{
  services.openssh.enable = true;

  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.com:8080";
    tls.caCert = "/etc/nixfleet/fleet-root.cert.pem";
    # Where `nixfleet host prepare` and nixos-anywhere put it.
    bootstrapTokenFile = "/var/lib/nixfleet/bootstrap-token.age";
  };

  environment.etc."nixfleet/fleet-root.cert.pem" = lib.mkIf (config.nixfleet.trust.rootCAPem != null) {
    text = config.nixfleet.trust.rootCAPem;
  };

  # Whatever it serves must bear a signature of nixfleet.trust.cacheKeys.
  nix.settings.substituters = [ "http://cp.example.com:5000" ];

  # What `nixos-generate-config` finds out about a machine belongs into its own
  # file; this is enough for one that boots by EFI, with file systems labelled so.
  fileSystems."/" = lib.mkDefault {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  fileSystems."/boot" = lib.mkDefault {
    device = "/dev/disk/by-label/boot";
    fsType = "vfat";
  };
  boot.loader.systemd-boot.enable = lib.mkDefault true;

  system.stateVersion = "25.11";
}
