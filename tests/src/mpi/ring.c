/* What the nodes of a burst simulation do: compute apart, meet, pass data around.
 * Prints one JSON object: pi by the midpoint rule over all ranks, the time of a barrier, and the rate of a ring. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double quarter_circle(long long from, long long points, int step) {
    double sum = 0, width = 1.0 / (double)points;
    for (long long i = from; i < points; i += step) {
        double x = ((double)i + 0.5) * width;
        sum += 4.0 / (1.0 + x * x);
    }
    return sum * width;
}

int main(int argc, char **argv) {
    int rank, size, provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SINGLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    long long points = argc > 1 ? atoll(argv[1]) : 50000000;
    int bytes = argc > 2 ? atoi(argv[2]) : 1 << 20, laps = argc > 3 ? atoi(argv[3]) : 8, barriers = 50;

    double start = MPI_Wtime(), part = quarter_circle(rank, points, size), pi = 0;
    MPI_Reduce(&part, &pi, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    double pi_seconds = MPI_Wtime() - start;

    /* The first one makes the connections. */
    MPI_Barrier(MPI_COMM_WORLD);
    start = MPI_Wtime();
    for (int i = 0; i < barriers; i++) MPI_Barrier(MPI_COMM_WORLD);
    double barrier = (MPI_Wtime() - start) / barriers;

    /* Everybody sends to the right and receives from the left at the same time, every link of the ring in use. */
    unsigned char *out = malloc((size_t)bytes), *in = malloc((size_t)bytes);
    memset(out, rank, (size_t)bytes);
    int right = (rank + 1) % size, left = (rank + size - 1) % size, wrong = 0;
    MPI_Barrier(MPI_COMM_WORLD);
    start = MPI_Wtime();
    for (int lap = 0; lap < laps; lap++) {
        for (int hop = 1; hop <= size; hop++) {
            MPI_Sendrecv(out, bytes, MPI_BYTE, right, 0, in, bytes, MPI_BYTE, left, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            /* After `hop` hops a block has come from that far left. */
            unsigned char from = (unsigned char)((rank + size - hop) % size);
            for (int i = 0; i < bytes; i += 997) wrong += in[i] != from;
            unsigned char *swap = out;
            out = in;
            in = swap;
        }
    }
    double ring = MPI_Wtime() - start;
    int all_wrong = 0;
    MPI_Reduce(&wrong, &all_wrong, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        double moved = (double)bytes * laps * size * size;
        printf("{\"ranks\": %d, \"pi\": %.12f, \"error\": %.3e, \"pi_seconds\": %.6f, \"barrier_us\": %.1f, "
               "\"ring_bytes\": %.0f, \"ring_seconds\": %.6f, \"ring_mbps\": %.1f, \"wrong_bytes\": %d}\n",
               size, pi, fabs(pi - 3.14159265358979323846), pi_seconds, barrier * 1e6, moved, ring,
               moved * 8e-6 / ring, all_wrong);
    }
    MPI_Finalize();
    return all_wrong != 0;
}
