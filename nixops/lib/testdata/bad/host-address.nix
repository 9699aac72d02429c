# expect: the name must be a host name
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts = base.hosts // { "10.0.0.1" = base.hosts.web-02; }; })
