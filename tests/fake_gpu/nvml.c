// libnvidia-ml.so.1 for tests, beside the driver of cuda.c: clocks, and what keeps them down.
// Names and codes are those of https://docs.nvidia.com/deploy/nvml-api/.

#include <stdio.h>
#include <string.h>

static int open_, throttled_, queries_, mhz_ = 1500;

void fake_nvml(int throttled, int mhz) {
    throttled_ = throttled;
    mhz_ = mhz;
}
int fake_nvml_open(void) { return open_; }
int fake_nvml_queries(void) { return queries_; }

int nvmlInitWithFlags(unsigned flags) { return (void)flags, open_++, 0; }
int nvmlInit_v2(void) { return open_++, 0; }
int nvmlShutdown(void) { return open_--, 0; }
const char *nvmlErrorString(int code) { return code == 6 ? "Not Found" : "fake error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { return snprintf(text, n, "570.1"), 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    return *device = (void *)0xD0, strcmp(id, "0000:01:00.0") ? 6 : 0;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned n) { return (void)device, snprintf(text, n, "GPU-fake"), 0; }
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) {
    (void)device;
    *mhz = kind == 1 ? mhz_ : 0; // of the SMs
    return 0;
}
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *mhz) { return (void)device, *mhz = kind == 1 ? 2000 : 0, 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    (void)device;
    queries_++;
    *reasons = 1; // idle
    if (throttled_ > 0) {
        throttled_--;
        *reasons = 0x40; // thermal, by the hardware
    }
    return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) { return (void)device, *milliwatts = 300000, 0; }
