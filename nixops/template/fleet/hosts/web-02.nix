{
  services.nginx.enable = true;

  services.nixfleet-agent.healthChecks.http = [
    {
      name = "site";
      url = "http://127.0.0.1:80/";
    }
  ];
}
