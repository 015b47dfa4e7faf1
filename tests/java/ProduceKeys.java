import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Sends one record for each key on standard input (hex, one a line; an empty line is the empty key) to each of the
 * topics with Kafka's own Java producer and its default settings, and prints the partition that each went to.
 *
 * <p>Arguments: the bootstrap servers, and topics. What is printed is in their order, and in that of the keys.
 */
class ProduceKeys {
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0]);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        List<String> keys;
        try (var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII))) {
            keys = input.lines().toList();
        }
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (String topic : List.of(arguments).subList(1, arguments.length)) {
                for (String key : keys) {
                    sent.add(producer.send(new ProducerRecord<>(topic, HexFormat.of().parseHex(key), new byte[0])));
                }
            }
        }
        for (Future<RecordMetadata> one : sent) {
            System.out.println(one.get().partition());
        }
    }
}
