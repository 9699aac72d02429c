# Stands in for nixpkgs' file of the same name.
pkgs: {
  snakeOilEd25519PrivateKey = pkgs.writeText "privkey.snakeoil" "not a key";
  snakeOilEd25519PublicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgHWll+choVbi4Hmd5cwMUyTcbn6vHN1GJQho7FMhXd snakeoil";
}
