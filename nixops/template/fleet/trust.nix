# The public keys this fleet believes. `nixfleet keygen` prints this block.
{
  nixfleet.trust = {
    ciReleaseKey.current = null;
    orgRootKey.current = null;
    cacheKeys = [ ];
  };
}
