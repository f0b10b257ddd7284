"""Commands of `onediff data` that write data sets."""
