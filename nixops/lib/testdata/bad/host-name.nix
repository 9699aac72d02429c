# expect: the name must be a host name
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts = base.hosts // { "web 09" = base.hosts.web-02; }; })
