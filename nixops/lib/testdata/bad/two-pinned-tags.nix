# expect: host 'web-01' holds the pinned tags 'web', 'eu'
{ mkFleet, mergeFleets, base, ... }:
mkFleet (base // { hosts.web-01 = base.hosts.web-01 // { tags = [ "web" "eu" ]; }; tags = let pin = { commit = "4f1c0a9be27d5538c6a1f09d3b7e2460d8a5c913"; reason = "r"; }; in { web = { inherit pin; }; eu = { inherit pin; }; }; })
