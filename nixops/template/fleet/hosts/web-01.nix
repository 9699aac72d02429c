{
  imports = [ ./disk.nix ];
  disko.devices.disk.main.device = "/dev/sda"; # as lsblk on the machine calls it

  services.nginx.enable = true;

  services.nixfleet-agent.healthChecks.http = [
    {
      name = "site";
      url = "http://127.0.0.1:80/";
    }
  ];
}
