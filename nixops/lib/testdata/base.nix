# What each case of testdata/bad spoils in one place.
{
  hosts = {
    web-01 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" ];
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd";
    };
    web-02 = {
      system = "x86_64-linux";
      channel = "stable";
      tags = [ "web" ];
      pubkey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF4hLAmA5LOfwJchE0qgIQk3Tt/SYMDT0Dy1AcjWVFep";
    };
  };
  channels.stable.rolloutPolicy = "staged";
  rolloutPolicies.staged = { };
}
