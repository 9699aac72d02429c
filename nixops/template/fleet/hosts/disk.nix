# One disk for a machine that boots by EFI: a partition for the boot loader and one for
# everything else. install.sh erases the disk that the host's own file names and lays it
# out like this.
#
# A machine that keeps its disks, or boots otherwise, imports what nixos-generate-config
# found out about it instead of this file.
{ lib, ... }:
{
  disko.devices.disk.main = {
    type = "disk";
    content = {
      type = "gpt";
      partitions = {
        ESP = {
          size = "1G";
          type = "EF00";
          content = {
            type = "filesystem";
            format = "vfat";
            mountpoint = "/boot";
            mountOptions = [ "umask=0077" ];
          };
        };
        root = {
          size = "100%";
          content = {
            type = "filesystem";
            format = "ext4";
            mountpoint = "/";
          };
        };
      };
    };
  };

  # With systemd-boot a staged system is tried once; the machine returns by itself from one
  # that does not come up.
  boot.loader.systemd-boot.enable = lib.mkDefault true;
  boot.loader.efi.canTouchEfiVariables = lib.mkDefault true;

  # Of disks in servers, and in machines of KVM, where NixOS's own list has no drivers.
  boot.initrd.availableKernelModules = [
    "ahci"
    "nvme"
    "sd_mod"
    "usb_storage"
    "virtio_blk"
    "virtio_pci"
    "virtio_scsi"
    "xhci_pci"
  ];
  hardware.enableRedistributableFirmware = lib.mkDefault true;
}
