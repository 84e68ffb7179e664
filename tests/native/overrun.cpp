// Mistakes on purpose, for the sanitizers to find.
extern "C" float read_beyond(const float* values, int count) { return values[count]; }
extern "C" int add_beyond(int largest) { return largest + 1; }
